#include <livepatch.h>

extern void look(void);

static int lp_answer(int x)
{
	look();
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
