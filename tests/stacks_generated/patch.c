// Version 2 of answer(), which waits in a function of its own.
#include <livepatch.h>

extern void wait_here(void);

static __attribute__((noinline)) void helper(void)
{
	wait_here();
	__asm__ volatile("" ::: "memory");
}

static int lp_answer(int x)
{
	helper();
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
