// Uses the registers in which leaf()'s caller keeps its values.
#include <livepatch.h>
#include <stddef.h>

static long lp_leaf(long x)
{
	__asm__ volatile("mov $-1, %%rsi\n mov $-1, %%rdx\n mov $-1, %%rcx\n mov $-1, %%r8" ::: "rsi", "rdx", "rcx", "r8");
	return x + 1;
}

static struct klp_func funcs[] = { { .old_name = "leaf", .new_func = lp_leaf }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
