// outer() gives 10, inner() adds 2.
#include <livepatch.h>
#include <stddef.h>

extern void wait_here(void);
extern int inner(int);

static int lp_outer(void)
{
	wait_here();
	return inner(10);
}

static int lp_inner(int x)
{
	__asm__ volatile("" : "+r"(x));
	return x + 2;
}

static struct klp_func funcs[] = {
	{ .old_name = "outer", .new_func = lp_outer },
	{ .old_name = "inner", .new_func = lp_inner },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
