// A task asleep below the replaced answer(), with functions inlined on both sides of it, and one below many calls of
// descend().
//
//# target: gcc,clang -O2 pie
//
// Commands: "wake" lets both tasks leave and enter answer() once, and says which version they run.
#include "scn.h"

enum { DEPTH = 40 };
static int pipes[2][2];
static __thread int self;
static atomic_int entered;
static atomic_int versions[2];

__attribute__((noinline)) void wait_here(void)
{
	char byte;
	atomic_fetch_add(&entered, 1);
	while (read(pipes[self][0], &byte, 1) < 0) // the innermost line
		if (errno != EINTR)
			scn_broken("read: %m");
}

static inline __attribute__((always_inline)) void inner(int x)
{
	if (x)
		wait_here(); // in inner()
	BARRIER();
}

static inline __attribute__((always_inline)) void outer(int x)
{
	BARRIER();
	inner(x + 1); // in outer()
	BARRIER();
}

// The argument is used after the calls, so that the function begins with more than a push.
PATCHABLE int answer(int x)
{
	__asm__ volatile("" : "+b"(x));
	outer(x); // in answer()
	return x + 1;
}

PATCHABLE int descend(int depth)
{
	int result = depth ? descend(depth - 1) : answer(1) - 1;
	BARRIER();
	return result;
}

static __attribute__((noinline)) void *flat(void *argument)
{
	for (;;) {
		atomic_store(&versions[0], answer(1) - 1); // in flat()
		BARRIER();
	}
	return argument;
}

static void *deep(void *argument)
{
	self = 1;
	for (;;)
		atomic_store(&versions[1], descend(DEPTH));
	return argument;
}

static const char *says(int version)
{
	return version == 1 ? "old" : "new";
}

static const char *wake(void)
{
	int before = atomic_load(&entered);
	for (int task = 0; task < 2; task++)
		(void)!write(pipes[task][1], "", 1);
	while (atomic_load(&entered) < before + 2)
		scn_nap_us(100);
	const char *first = says(atomic_load(&versions[0]));
	return strcmp(first, says(atomic_load(&versions[1]))) ? "mixed" : first;
}

static const char *scn_check(void)
{
	return wake();
}

static const char *scn_command(const char *line)
{
	return strcmp(line, "wake") ? "unknown command" : wake();
}

int main(void)
{
	for (int task = 0; task < 2; task++)
		(void)!pipe(pipes[task]);
	pthread_setname_np(scn_thread(flat, NULL), "flat");
	pthread_setname_np(scn_thread(deep, NULL), "deep");
	while (atomic_load(&entered) < 2)
		scn_nap_us(100);
	scn_serve();
}
