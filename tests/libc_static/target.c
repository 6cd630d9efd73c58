// Tasks call a function of libc's that has a name only in libc's separate debug file.
//
//# target: gcc -O2 pie
#include "scn.h"

static atomic_ulong rounds;

static void *work(void *argument)
{
	for (;; atomic_fetch_add(&rounds, 1)) {
		(void)lrand48();
		scn_nap_us(100);
	}
	return argument;
}

// The new version gives 0 for ever, which the old one gives once in 2^31 calls.
static const char *scn_check(void)
{
	unsigned long before = atomic_load(&rounds);
	while (atomic_load(&rounds) < before + 2)
		scn_nap_us(100);
	long got = lrand48() | lrand48();
	return got ? "old" : "new";
}
#include "no_command.h"

int main(void)
{
	scn_thread(work, NULL);
	scn_serve();
}
