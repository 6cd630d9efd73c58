// A function that jumps to its own entry for each round of its loop, with its state in registers: a task that changed
// versions there would come out with a sum that neither version makes.
//
//# target: gcc -O2 pie
//# source: funcs.S
#include "scn.h"

enum { THREADS = 3, ROUNDS = 1000000 };
extern long self_loop(long rounds, long sum);
static struct {
	atomic_ulong loops;
	atomic_int version;
} threads[THREADS];

static int version(void)
{
	long sum = self_loop(ROUNDS, 0);
	if (sum == ROUNDS)
		return 1;
	if (sum != 1000l * ROUNDS)
		scn_broken("the sum is %ld: %ld old rounds of %d", sum, (1000l * ROUNDS - sum) / 999, ROUNDS);
	return 2;
}

static void *run(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (;;) {
		atomic_store(&threads[self].version, version());
		atomic_fetch_add(&threads[self].loops, 1);
		scn_nap_us(500);
	}
	return NULL;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < THREADS; i++) {
		unsigned long loops = atomic_load(&threads[i].loops);
		while (atomic_load(&threads[i].loops) < loops + 2)
			scn_nap_us(100);
		seen[atomic_load(&threads[i].version)]++;
	}
	seen[version()]++;
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

int main(void)
{
	for (intptr_t i = 0; i < THREADS; i++)
		scn_thread(run, (void *)i);
	scn_serve();
}
