// count() counts by hundreds.
#include <livepatch.h>
#include <stddef.h>

extern int in_function;
extern void suspend(void);

static int lp_count(int yes)
{
	int before = in_function;
	in_function = before + 100;
	if (yes)
		suspend();
	return in_function - before;
}

static struct klp_func funcs[] = { { .old_name = "count", .new_func = lp_count }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
