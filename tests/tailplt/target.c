// A replaced function ends in a jump through the PLT. Its task can then be in the PLT's code, or in the dynamic loader
// that looks for the function, with nothing of the replaced one on its stack.
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
static atomic_int go, tid;
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
	scn_serve();
}
