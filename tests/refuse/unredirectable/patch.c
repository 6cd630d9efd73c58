// Replaces stub().
#include <livepatch.h>
#include <stddef.h>

static void lp_stub(void)
{
	__asm__ volatile("" ::: "memory");
}

static struct klp_func funcs[] = { { .old_name = "stub", .new_func = lp_stub }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
