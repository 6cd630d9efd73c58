// A C++ program and a C++ library: virtual functions, templates, and exceptions that pass around what is patched. What a
// method of the program and one of the library agree on changes.
//
//# target: gcc,clang -O2 pie,no-pie
//# source: work.cc
//# library: lib.cc
//# link: -lstdc++
//# mappings: own
#include "scn.h"

enum { WORKERS = 3 };
int work(int self, int round);
static atomic_ulong rounds[WORKERS];
static atomic_int versions[WORKERS];

static void *run(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (int round = 0;; round = (round + 1) & 0xffff) {
		int version = work(self, round);
		if (version != 1 && version != 2)
			scn_broken("work(%d, %d) is %d", self, round, version);
		atomic_store(&versions[self], version);
		atomic_fetch_add(&rounds[self], 1);
		if (self == 0)
			scn_nap_us(200);
	}
	return argument;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < WORKERS; i++) {
		unsigned long before = atomic_load(&rounds[i]);
		while (atomic_load(&rounds[i]) < before + 2)
			scn_nap_us(100);
		seen[atomic_load(&versions[i])]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

int main(void)
{
	for (intptr_t i = 0; i < WORKERS; i++)
		scn_thread(run, (void *)i);
	scn_serve();
}
