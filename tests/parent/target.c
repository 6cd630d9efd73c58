// What a parent sees of a child that is being patched: nothing. The child is the program to patch; the parent counts
// SIGCHLD (without SA_NOCLDSTOP) and asks waitpid for stops and continues all the time.
//
//# target: gcc -O2 pie
//
// The harness talks to the parent; "child" gives the pid to patch. "old"/"new" is what the child says.
#include "scn.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

static atomic_int signals_seen, stops_seen;
static pid_t child;
static struct {
	_Atomic unsigned rounds;
	atomic_int version;
} *shared;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static void *block(void *argument)
{
	for (;;)
		pause();
	return argument;
}

static void count_signal(int signal)
{
	(void)signal;
	atomic_fetch_add(&signals_seen, 1);
}

static void *watch(void *argument)
{
	for (;;) {
		int status;
		pid_t got = waitpid(child, &status, WUNTRACED | WCONTINUED);
		if (got < 0 && errno == EINTR)
			continue;
		if (got != child || WIFEXITED(status) || WIFSIGNALED(status))
			scn_broken("the child ended with status %#x", status);
		atomic_fetch_add(&stops_seen, 1);
	}
	return argument;
}

static const char *scn_check(void)
{
	unsigned rounds = atomic_load(&shared->rounds);
	while (atomic_load(&shared->rounds) < rounds + 3)
		scn_nap_us(100);
	return atomic_load(&shared->version) == 1 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	static char text[128];
	if (!strcmp(line, "child"))
		snprintf(text, sizeof text, "%d", child);
	else
		snprintf(text, sizeof text, "sigchld=%d stops=%d", signals_seen, stops_seen);
	return text;
}

int main(void)
{
	signal(SIGCHLD, count_signal);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	child = fork();
	if (!child) {
		signal(SIGCHLD, SIG_DFL);
		pid_t parent = getppid();
		for (int i = 0; i < 8; i++)
			scn_thread(block, NULL);
		while (getppid() == parent) {
			for (int i = 0; i < 1000; i++)
				atomic_store(&shared->version, answer(i) - i);
			atomic_fetch_add(&shared->rounds, 1);
			scn_nap_us(100);
		}
		_exit(0);
	}
	scn_thread(watch, NULL);
	scn_serve();
}
