// A task that is nearly always within answer().
//
//# target: gcc -O2 pie
//# mappings: own
#include "scn.h"

static atomic_int version;

PATCHABLE int answer(int x)
{
	for (int i = 0; i < 1000000; i++)
		BARRIER();
	return x + 1;
}

__attribute__((noinline)) void caller(void)
{
	atomic_store(&version, answer(0));
	BARRIER();
}

static void *run(void *argument)
{
	for (;;)
		caller();
	return argument;
}

static const char *scn_check(void)
{
	atomic_store(&version, 0);
	while (!atomic_load(&version))
		scn_nap_us(100);
	return atomic_load(&version) == 1 ? "old" : "new";
}
#include "no_command.h"

int main(void)
{
	scn_thread(run, NULL);
	scn_serve();
}
