// A program that has loaded the unwinder, whose only task runs on a small stack of its own making.
//
//# target: gcc -O2 pie
//# link: -Wl,--no-as-needed -lgcc_s
#include "answer.h"
#include <ucontext.h>

static ucontext_t here, there;
static char stack[16 * 1024];

int main(void)
{
	getcontext(&there);
	there.uc_stack.ss_sp = stack;
	there.uc_stack.ss_size = sizeof stack;
	there.uc_link = &here;
	makecontext(&there, scn_serve, 0);
	swapcontext(&here, &there);
}
