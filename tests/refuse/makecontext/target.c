// Coroutines, and two tasks: either may go on with what the other has left, so both would have to stop at once.
//# pack-or-load: refuse makecontext|swapcontext|--together
//# mappings: own
#include "answer.h"
#include <ucontext.h>

static ucontext_t outside, inside;
static char stack[65536];

static void coroutine(void)
{
	for (;;)
		swapcontext(&inside, &outside);
}

static void *second_task(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(void)
{
	scn_thread(second_task, NULL);
	getcontext(&inside);
	inside.uc_stack.ss_sp = stack;
	inside.uc_stack.ss_size = sizeof stack;
	makecontext(&inside, coroutine, 0);
	swapcontext(&outside, &inside);
	scn_serve();
}
