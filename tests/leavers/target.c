// Tasks that nap in a replaced function all the time, until its entry is redirected; a moment later they leave it for
// good and go to sleep elsewhere. One that was found busy just before must not be waited for because it sleeps.
//
//# target: gcc -O2 pie
#include "scn.h"
#include <sys/prctl.h>

enum { TASKS = 50, MOST_NAPS = 40 };
static atomic_int napping;
static unsigned char first_byte;

PATCHABLE int nap(long microseconds)
{
	struct timespec time = { 0, microseconds * 1000 };
	while (nanosleep(&time, &time) && errno == EINTR)
		;
	BARRIER();
	return 1;
}

static unsigned char entry(void)
{
	const volatile unsigned char *code = (const unsigned char *)nap;
	return *code;
}

static void *run(void *argument)
{
	unsigned seed = scn_now_us() + (intptr_t)argument * 7919;
	prctl(PR_SET_TIMERSLACK, 1);
	atomic_fetch_add(&napping, 1);
	while (entry() == first_byte)
		nap(50 + rand_r(&seed) % 50);
	for (int left = rand_r(&seed) % MOST_NAPS; left > 0; left--)
		nap(50 + rand_r(&seed) % 50);
	for (;;)
		sleep(1000);
	return NULL;
}

static const char *scn_check(void)
{
	return nap(1) == 1 ? "old" : "new";
}
#include "no_command.h"

int main(void)
{
	first_byte = entry();
	for (intptr_t i = 0; i < TASKS; i++)
		scn_thread(run, (void *)i);
	while (atomic_load(&napping) < TASKS)
		scn_nap_us(100);
	scn_serve();
}
