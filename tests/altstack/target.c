// The task that sleeps best does so in a signal handler, on an alternate stack with so many bytes left. What lies below
// that stack is somebody else's. (Bound at the start: the dynamic loader would look functions up on that stack.)
//
//# target: gcc -O2 pie
//# link: -Wl,-z,now
//
// Argument: how many bytes are left. Command "release" ends the handler.
#include "scn.h"
#include <signal.h>

static struct {
	unsigned char others[16384];
	unsigned char stack[65536];
} area __attribute__((aligned(64)));
static sem_t wake;
static atomic_int asleep, released;
static int left;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static void take(sem_t *sem)
{
	while (sem_wait(sem))
		if (errno != EINTR)
			scn_broken("sem_wait: %m");
}

static void handler(int signal)
{
	(void)signal;
	unsigned char *here = __builtin_frame_address(0);
	volatile unsigned char *used = __builtin_alloca(here - area.stack - left);
	used[0] = 1;
	atomic_store(&asleep, gettid());
	take(&wake);
}

static void *sleeper(void *argument)
{
	stack_t stack = { .ss_sp = area.stack, .ss_size = sizeof area.stack };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	if (sigaltstack(&stack, NULL) || sigaction(SIGUSR1, &action, NULL))
		scn_broken("sigaction: %m");
	raise(SIGUSR1);
	atomic_store(&released, 1);
	for (;;)
		take(&wake);
	return argument;
}

static const char *scn_check(void)
{
	for (unsigned i = 0; i < sizeof area.others; i++)
		if (area.others[i] != 0x5a)
			scn_broken("%u bytes below the stack something was written", (unsigned)sizeof area.others - i);
	return answer(40) == 41 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	(void)line;
	sem_post(&wake);
	while (!atomic_load(&released))
		scn_nap_us(100);
	return "ok";
}

int main(int count, char **values)
{
	left = scn_argument(count, values, 1, 32768);
	memset(area.others, 0x5a, sizeof area.others);
	scn_thread(sleeper, NULL);
	while (!atomic_load(&asleep))
		scn_nap_us(100);
	scn_wait_until_in(SYS_futex, atomic_load(&asleep));
	scn_serve();
}
