// answer(x) is x + 2 instead of x + 1. It has variables of its own: memory that can be written to.
#include <livepatch.h>
#include <stddef.h>

static volatile int difference = 2;
static volatile char room[2 * 4096];

static int lp_answer(int x)
{
	room[x & 0xff] = x;
	return x + difference;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
