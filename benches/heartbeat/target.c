// A heartbeat among blocked threads: how long did the application stand still, at worst?
//
//# target: gcc -O2 pie
//
// Arguments: number of blocked threads; microseconds that the heart sleeps between beats, 0: it spins. The command "gap"
// gives the worst time between two beats since the last "gap", in microseconds. The heart calls the replaced function
// with each beat.
#include "scn.h"

static _Atomic uint64_t worst;
static int sleep_us;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static void *block(void *argument)
{
	pthread_mutex_lock(argument);
	return NULL;
}

static void *beat(void *argument)
{
	uint64_t last = scn_now_us();
	for (;;) {
		answer(1);
		if (sleep_us)
			scn_nap_us(sleep_us);
		uint64_t now = scn_now_us();
		if (now - last > atomic_load(&worst))
			atomic_store(&worst, now - last);
		last = now;
	}
	return argument;
}

static const char *scn_check(void)
{
	return answer(40) == 41 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	static char text[64];
	snprintf(text, sizeof text, "%lu", atomic_exchange(&worst, 0));
	return strcmp(line, "gap") ? "unknown command" : text;
}

int main(int count, char **values)
{
	static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
	pthread_mutex_lock(&held);
	sleep_us = scn_argument(count, values, 2, 0);
	for (int i = scn_argument(count, values, 1, 1000); i > 0; i--)
		scn_thread(block, &held);
	scn_thread(beat, NULL);
	scn_nap_us(100000);
	scn_serve();
}
