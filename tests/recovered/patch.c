// All of these are static in the program.
#include <livepatch.h>

extern volatile int added;
extern int counted;
extern __thread volatile int mine;
extern int triple(int x);

static int lp_answer(int x)
{
	counted++;
	return x + added + 1 + triple(1) + mine;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
