#include <livepatch.h>
#include <stdlib.h>

extern int missing(int) __attribute__((weak));
extern int missing_variable __attribute__((weak));
extern int there __attribute__((weak));

static int lp_answer(int x)
{
	char *got = realpath("/", NULL);
	if (got)
		return x + 10;
	if (missing)
		return missing(x);
	if (&missing_variable)
		return x + 20;
	if (!&there || there != 5)
		return x + 30;
	return x + 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
