// count() counts by hundreds.
#include <livepatch.h>
#include <stddef.h>
#include "fiber.h"

extern void deeper(int *value);

static int lp_count(struct fiber *fiber, int yes)
{
	int before = fiber->before;
	fiber->before = before + 100;
	deeper(&before);
	if (yes)
		LEAVE(fiber);
	return fiber->before - before;
}

static struct klp_func funcs[] = { { .old_name = "count", .new_func = lp_count }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
