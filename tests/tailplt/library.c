// arrive() is found by a function that the dynamic loader calls in the course of the lookup, and that waits if it is told to.
#include <stdatomic.h>
#include <time.h>

static atomic_int waits, is_at;

void lookup_waits(int how)
{
	atomic_store(&waits, how);
}

int lookup_is_at(void)
{
	return atomic_load(&is_at);
}

static int here(int x)
{
	return x;
}

static int (*resolve(void))(int)
{
	atomic_store(&is_at, 1);
	while (atomic_load(&waits)) {
		struct timespec time = { 0, 1000000 };
		nanosleep(&time, NULL);
	}
	return here;
}

int arrive(int x) __attribute__((ifunc("resolve")));
