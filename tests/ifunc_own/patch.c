#include <livepatch.h>

extern int chosen(void);
extern int cloned(int x);

static int lp_answer(int x)
{
	int (*volatile through)(int) = cloned;
	if (through(4) != 12 || cloned(5) != 15)
		return -1;
	return x + chosen();
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
