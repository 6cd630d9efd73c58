// Coroutines: code may be running on stacks that nobody can see.
//# pack-or-load: refuse makecontext|swapcontext
#include "answer.h"
#include <ucontext.h>

static ucontext_t outside, inside;
static char stack[65536];

static void coroutine(void)
{
	for (;;)
		swapcontext(&inside, &outside);
}

int main(void)
{
	getcontext(&inside);
	inside.uc_stack.ss_sp = stack;
	inside.uc_stack.ss_size = sizeof stack;
	makecontext(&inside, coroutine, 0);
	swapcontext(&outside, &inside);
	scn_serve();
}
