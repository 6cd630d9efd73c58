// A C++ program: a task asleep below a method of a template in a namespace.
//
//# target: gcc,clang -O2 pie
//# source: work.cc
//# link: -lstdc++
//
// Commands: "wake" lets the task leave the method and enter it again.
#include "scn.h"

void work(void);
static int pipe_ends[2];
static atomic_int entered, version;

void wait_here(void)
{
	char byte;
	atomic_fetch_add(&entered, 1);
	while (read(pipe_ends[0], &byte, 1) < 0)
		if (errno != EINTR)
			scn_broken("read: %m");
}

void set_version(int now)
{
	atomic_store(&version, now);
}

static void *run(void *argument)
{
	work();
	return argument;
}

static const char *scn_check(void)
{
	int before = atomic_load(&entered);
	(void)!write(pipe_ends[1], "", 1);
	while (atomic_load(&entered) == before)
		scn_nap_us(100);
	return atomic_load(&version) == 1 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	return strcmp(line, "wake") ? "unknown command" : scn_check();
}

int main(void)
{
	(void)!pipe(pipe_ends);
	scn_thread(run, NULL);
	while (!atomic_load(&entered))
		scn_nap_us(100);
	scn_serve();
}
