// answer(x) is x + 2 instead of x + 1.
#include <livepatch.h>
#include <stddef.h>

static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
