// A C program, compiled with -fexceptions: threads are cancelled below answer(), and what the functions above it have to
// clean up is cleaned up; backtrace() there sees main().
//
//# target: gcc,clang -O2 pie
//# flags: -fexceptions -fasynchronous-unwind-tables
//# link: -rdynamic
//# mappings: own
#include "scn.h"
#include <execinfo.h>

static int pipe_ends[2];
static atomic_int cleaned, depth, seen_main;

void look(void)
{
	void *frames[64];
	int count = backtrace(frames, 64);
	char **names = backtrace_symbols(frames, count);
	int found = 0;
	for (int i = 0; names && i < count; i++)
		found |= strstr(names[i], "(main+") || strstr(names[i], "(above+");
	free(names);
	atomic_store(&seen_main, found);
}

// Cancelled here.
void wait_here(void)
{
	char byte;
	atomic_fetch_add(&depth, 1);
	if (read(pipe_ends[0], &byte, 1) != 1)
		scn_broken("read: %m");
}

PATCHABLE int answer(int wait)
{
	if (wait)
		wait_here();
	else
		look();
	// Else clang would know in callers what it returns.
	int one = 1;
	__asm__ volatile("" : "+r"(one));
	return one;
}

static void clean(int *what)
{
	atomic_fetch_add(&cleaned, *what);
}

__attribute__((noinline)) void *above(void *argument)
{
	__attribute__((cleanup(clean), unused)) int what = 1;
	int version = answer(argument != NULL);
	BARRIER();
	return (void *)(intptr_t)version;
}

static const char *scn_check(void)
{
	int before = atomic_load(&cleaned);
	atomic_store(&depth, 0);
	int version = (int)(intptr_t)above(NULL);
	if (!atomic_load(&seen_main))
		return "backtrace() has not seen it";
	if (atomic_load(&cleaned) != before + 1)
		return "not cleaned";
	pthread_t thread = scn_thread(above, "wait");
	while (!atomic_load(&depth))
		scn_nap_us(100);
	void *result;
	pthread_cancel(thread);
	pthread_join(thread, &result);
	if (result != PTHREAD_CANCELED)
		return "not cancelled";
	if (atomic_load(&cleaned) != before + 2)
		return "not cleaned after cancellation";
	return version == 1 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	(void)line;
	return "unknown command";
}

int main(void)
{
	(void)!pipe(pipe_ends);
	scn_serve();
}
