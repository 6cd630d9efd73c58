// A caller and a callee change what they agree on, together. One task that runs the old caller with the new callee, or
// the new with the old, ends the program. Everything else is load: hot loops, naps inside the replaced caller, threads
// that come and go, forked children that go on checking for a while, vforked ones.
//
//# target: gcc -O0,-O2 pie
//# mappings: own
//
// Arguments: number of hot threads, number of napping threads, 1 = churn (threads, forks).
#include "scn.h"
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

static atomic_ulong hot_rounds, nap_rounds, threads_made, children_made, spawned, new_rounds;

void contract_broken(int expected, int got)
{
	scn_broken("the callee of version %d was called by a caller of version %d", expected, got);
}

PATCHABLE int callee(int contract, int x)
{
	if (contract != 1)
		contract_broken(1, contract);
	return x + 1;
}

// nap: 0 = no, else so many microseconds between the two calls.
// Its last call is a tail jump at -O2: then nothing of the caller is left when the callee begins.
PATCHABLE int caller(int x, long nap)
{
	int first = callee(1, x);
	if (nap)
		scn_nap_us(nap);
	int second = callee(1, first);
	return second;
}

static int round_of(int x, long nap)
{
	int got = caller(x, nap);
	if (got != x + 2 && got != x + 4)
		scn_broken("caller(%d) is %d", x, got);
	return got == x + 4;
}

static void *hot(void *argument)
{
	(void)argument;
	for (int x = 0;; x = (x + 1) & 0xffff) {
		if (round_of(x, 0) && !(x & 0xff))
			atomic_fetch_add(&new_rounds, 1);
		if (!(x & 0xff))
			atomic_fetch_add(&hot_rounds, 1);
	}
	return NULL;
}

static void *nap(void *argument)
{
	long time = 500 + 700 * (long)(intptr_t)argument;
	for (int x = 0;; x++) {
		round_of(x & 0xffff, time);
		atomic_fetch_add(&nap_rounds, 1);
	}
	return NULL;
}

static void *short_lived(void *argument)
{
	for (int x = 0; x < 50; x++)
		round_of(x, x % 25 == 24 ? 200 : 0);
	return argument;
}

static void *thread_churn(void *argument)
{
	for (;;) {
		pthread_t some[4];
		for (int i = 0; i < 4; i++)
			some[i] = scn_thread(short_lived, NULL);
		for (int i = 0; i < 4; i++)
			pthread_join(some[i], NULL);
		atomic_fetch_add(&threads_made, 4);
		scn_nap_us(500);
	}
	return argument;
}

static void *fork_churn(void *argument)
{
	extern char **environ;
	for (;;) {
		pid_t child = fork();
		if (child < 0)
			scn_broken("fork: %m");
		if (!child) {
			uint64_t until = scn_now_us() + 10000;
			for (int x = 0; scn_now_us() < until; x = (x + 1) & 0xffff)
				round_of(x, x % 500 == 499 ? 300 : 0);
			_exit(0);
		}
		int status;
		while (waitpid(child, &status, 0) < 0)
			if (errno != EINTR)
				scn_broken("waitpid: %m");
		if (status)
			scn_broken("a forked child ended with status %#x", status);
		if (atomic_fetch_add(&children_made, 1) % 8 == 7) {
			char *words[] = { "true", NULL };
			if (posix_spawn(&child, "/bin/true", NULL, NULL, words, environ))
				scn_broken("posix_spawn");
			while (waitpid(child, &status, 0) < 0)
				if (errno != EINTR)
					scn_broken("waitpid: %m");
			if (status)
				scn_broken("a spawned child ended with status %#x", status);
			atomic_fetch_add(&spawned, 1);
		}
		scn_nap_us(1000);
	}
	return argument;
}

static const char *scn_check(void)
{
	return round_of(5, 0) ? "new" : "old";
}

static const char *scn_command(const char *line)
{
	static char text[256];
	if (strcmp(line, "counts"))
		return "unknown command";
	snprintf(text, sizeof text, "hot=%lu nap=%lu threads=%lu children=%lu spawned=%lu new=%lu", hot_rounds, nap_rounds,
		 threads_made, children_made, spawned, new_rounds);
	return text;
}

int main(int count, char **values)
{
	int hot_count = scn_argument(count, values, 1, 2);
	int nap_count = scn_argument(count, values, 2, 4);
	for (int i = 0; i < hot_count; i++)
		scn_thread(hot, NULL);
	for (intptr_t i = 0; i < nap_count; i++)
		scn_thread(nap, (void *)i);
	if (scn_argument(count, values, 3, 1)) {
		scn_thread(thread_churn, NULL);
		scn_thread(fork_churn, NULL);
	}
	scn_serve();
}
