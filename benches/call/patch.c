// empty(), again.
#include <livepatch.h>
#include <stddef.h>

static void lp_empty(void)
{
	__asm__ volatile("" ::: "memory");
}

static struct klp_func funcs[] = { { .old_name = "empty", .new_func = lp_empty }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
