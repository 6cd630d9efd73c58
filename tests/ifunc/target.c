// A program that has a C library, a mathematical library and a library of its own loaded, with indirect functions (IFUNC)
// that nobody has resolved. Only one task can be in a place where it can call a function: it naps all the time and blocks
// all signals. The other one reads commands in a signal handler.
//
// Argument: "handler": there is only the other one.
//
//# target: gcc -O2 pie
//# library: lib.c
//# mappings: own
//# link: -Wl,--no-as-needed,-z,lazy -lm
//
// Commands: "hold" and "let go": what held() waits for. "entered": whether its resolver has begun. "naps". "call": calls
// chosen(), which the program has a lazy PLT entry for. "fault": whether the handler for SIGSEGV is still that of the program.
#include "scn.h"
#include <signal.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

extern volatile int lib_hold, lib_entered;
int chosen(void);
static atomic_long naps;

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

static void handler(int signal)
{
	(void)signal;
	scn_serve();
}

static void on_fault(int signal)
{
	(void)signal;
	scn_broken("a fault");
}

static const char *scn_command(const char *line)
{
	static char text[32];
	if (!strcmp(line, "hold")) {
		lib_hold = 1;
	} else if (!strcmp(line, "let go")) {
		lib_hold = 0;
	} else if (!strcmp(line, "entered")) {
		return lib_entered ? "yes" : "no";
	} else if (!strcmp(line, "call")) {
		return chosen() == 2 ? "2" : "wrong";
	} else if (!strcmp(line, "fault")) {
		struct sigaction now;
		sigaction(SIGSEGV, NULL, &now);
		return now.sa_handler == on_fault ? "handled" : "forgotten";
	} else if (!strcmp(line, "naps")) {
		snprintf(text, sizeof text, "%ld", atomic_load(&naps));
		return text;
	} else {
		return "unknown command";
	}
	return "ok";
}

static void *nap(void *argument)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	for (;;) {
		errno = 4711;
		scn_nap_us(2000);
		if (errno != 4711)
			scn_broken("errno is %d", errno);
		sigset_t now;
		pthread_sigmask(SIG_BLOCK, NULL, &now);
		if (!sigismember(&now, SIGSEGV) || !sigismember(&now, SIGUSR2))
			scn_broken("signals are not blocked any more");
		atomic_fetch_add(&naps, 1);
	}
	return argument;
}

int main(int argc, char **argv)
{
	(void)argv;
	signal(SIGSEGV, on_fault);
	if (argc < 2)
		scn_thread(nap, NULL);
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
}
