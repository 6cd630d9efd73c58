#include <livepatch.h>

static __attribute__((noinline)) void lp_burn(void)
{
	for (int i = 0; i < 1000000; i++)
		__asm__ volatile("" ::: "memory");
}

static int lp_answer(int x)
{
	lp_burn();
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
