// padded(x) is x + 2.
#include <livepatch.h>
#include <stddef.h>

static int lp_padded(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "padded", .new_func = lp_padded }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
