// Preloaded into a server: as many threads with default stacks as THREADS says, which sleep for good. Their stacks, and the
// heaps that they get, are what fills an address space.
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static void *wait_for_good(void *argument)
{
	// A heap of its own, as a thread that does anything has one.
	free(malloc(100));
	for (;;)
		pause();
	return argument;
}

static __attribute__((constructor)) void start(void)
{
	const char *count = getenv("THREADS");
	pthread_t thread;
	for (int i = count ? atoi(count) : 0; i > 0; i--)
		if (pthread_create(&thread, NULL, wait_for_good, NULL))
			abort();
}
