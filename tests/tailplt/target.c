// A replaced function ends in a jump through the PLT. Its task can then be in the PLT's code, or in the dynamic loader
// that looks for the function, with nothing of the replaced one on its stack. Another task has what looks like that on
// its stack, and is not held.
//
//# target: gcc -O2 pie,no-pie
//# library: library.c
//# link: -Wl,-z,lazy
//
// Commands: "go" lets the walker call leave(), which looks up a function; "where" says where the PLT's code lies for it;
// "release" lets the lookup end, where that waits; "tid" gives the walker's number.
#include "scn.h"

extern int arrive(int x);
extern void lookup_waits(int how);
extern int lookup_is_at(void);
static atomic_int go, tid, littered;
static atomic_ulong rounds;

PATCHABLE int leave(int x)
{
	BARRIER();
	return arrive(x + 1);
}

static void *walker(void *argument)
{
	atomic_store(&tid, gettid());
	while (!atomic_load(&go))
		scn_nap_us(100);
	for (;;) {
		leave(1);
		atomic_fetch_add(&rounds, 1);
		scn_nap_us(100);
	}
	return argument;
}

// The address of the resolver, as lookups leave it behind, in a frame in which a coroutine could live.
extern void *_GLOBAL_OFFSET_TABLE_[] __attribute__((visibility("hidden")));
static void *litterer(void *argument)
{
	volatile uintptr_t litter[4096];
	for (int i = 0; i < 4096; i++)
		litter[i] = i % 64 ? 0 : (uintptr_t)_GLOBAL_OFFSET_TABLE_[2] + 32;
	__asm__ volatile("" ::"r"(litter) : "memory");
	atomic_store(&littered, 1);
	for (;;)
		pause();
	return argument;
}

static const char *scn_check(void)
{
	int x = leave(40);
	return x == 41 ? "old" : x == 42 ? "new" : "mixed";
}

static const char *scn_command(const char *line)
{
	static char text[64];
	if (!strcmp(line, "where")) {
		uintptr_t stub;
		__asm__("lea arrive@PLT(%%rip),%0" : "=r"(stub));
		snprintf(text, sizeof text, "%#lx", (long)stub);
		return text;
	}
	if (!strcmp(line, "tid")) {
		while (!atomic_load(&tid))
			scn_nap_us(100);
		snprintf(text, sizeof text, "%d", tid);
		return text;
	}
	if (!strcmp(line, "release")) {
		lookup_waits(0);
		for (unsigned long before = atomic_load(&rounds); atomic_load(&rounds) < before + 2;)
			scn_nap_us(100);
		return "ok";
	}
	if (!strcmp(line, "go and wait"))
		lookup_waits(1);
	atomic_store(&go, 1);
	while (!strcmp(line, "go and wait") && !lookup_is_at())
		scn_nap_us(100);
	return "ok";
}

int main(void)
{
	pthread_setname_np(scn_thread(walker, NULL), "walker");
	scn_thread(litterer, NULL);
	while (!atomic_load(&littered))
		scn_nap_us(100);
	scn_serve();
}
