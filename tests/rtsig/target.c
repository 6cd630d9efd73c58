// Real-time signals arrive complete and in order while patches come and go: queued at 5 kHz at one thread, at the
// process (one thread has the signal unblocked), and for a thread that takes them with sigwaitinfo.
//
//# target: gcc -O2 pie
#include "scn.h"
#include <signal.h>

enum { DIRECTED = 36, SHARED = 37, AWAITED = 38 };
static _Atomic long sent[3], received[3];
static pthread_t directed;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static void take(int kind, siginfo_t *info)
{
	long expected = atomic_fetch_add(&received[kind], 1);
	if (info->si_value.sival_int != expected)
		scn_broken("signal %d: number %d came where %ld was next", kind, info->si_value.sival_int, expected);
	int got = answer(3);
	if (got != 4 && got != 5)
		scn_broken("answer(3) is %d in a handler", got);
}

static void handle(int signal, siginfo_t *info, void *context)
{
	(void)context;
	int saved = errno;
	take(signal - DIRECTED, info);
	errno = saved;
}

static void only(int signal)
{
	sigset_t set;
	sigfillset(&set);
	sigdelset(&set, SIGABRT);
	if (signal)
		sigdelset(&set, signal);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

static void *spin_for_directed(void *argument)
{
	only(DIRECTED);
	for (;;)
		answer(1);
	return argument;
}

static void *sleep_for_shared(void *argument)
{
	only(SHARED);
	for (;;)
		pause();
	return argument;
}

static void *await(void *argument)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, AWAITED);
	for (;;) {
		siginfo_t info;
		int signal = sigwaitinfo(&set, &info);
		if (signal == AWAITED)
			take(2, &info);
		else
			scn_broken("sigwaitinfo: %d %m", signal);
	}
	return argument;
}

static void queue(int kind)
{
	union sigval value = { .sival_int = (int)atomic_load(&sent[kind]) };
	int failed;
	if (kind == 0)
		failed = pthread_sigqueue(directed, DIRECTED, value);
	else
		failed = sigqueue(getpid(), DIRECTED + kind, value) ? errno : 0;
	if (!failed)
		atomic_fetch_add(&sent[kind], 1);
	else if (failed != EAGAIN)
		scn_broken("queueing: %s", strerror(failed));
}

static void *send(void *argument)
{
	uint64_t next = scn_now_us();
	for (;;) {
		for (int kind = 0; kind < 3; kind++)
			queue(kind);
		next += 200;
		uint64_t now = scn_now_us();
		if (now < next)
			scn_nap_us(next - now);
	}
	return argument;
}

static const char *scn_check(void)
{
	return answer(40) == 41 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	static char text[128];
	if (strcmp(line, "counts"))
		return "unknown command";
	// Whatever was sent before now arrives within a generous while.
	for (int kind = 0; kind < 3; kind++) {
		long until = atomic_load(&sent[kind]);
		for (int i = 0; atomic_load(&received[kind]) < until; i++) {
			if (i > 20000)
				scn_broken("signal %d: %ld of %ld arrived", kind, received[kind], until);
			scn_nap_us(1000);
		}
	}
	snprintf(text, sizeof text, "directed=%ld shared=%ld awaited=%ld", received[0], received[1], received[2]);
	return text;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART };
	sigfillset(&action.sa_mask);
	sigaction(DIRECTED, &action, NULL);
	sigaction(SHARED, &action, NULL);
	only(0);
	directed = scn_thread(spin_for_directed, NULL);
	scn_thread(sleep_for_shared, NULL);
	scn_thread(await, NULL);
	scn_thread(send, NULL);
	scn_serve();
}
