// leave(x) adds 2 instead of 1; with -DLEAVES it leaves the same way.
#include <livepatch.h>
#include <stddef.h>

extern int arrive(int x);

static int lp_leave(int x)
{
	__asm__ volatile("" ::: "memory");
#ifdef LEAVES
	return arrive(x + 2);
#else
	return x + 2;
#endif
}

static struct klp_func funcs[] = { { .old_name = "leave", .new_func = lp_leave }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
