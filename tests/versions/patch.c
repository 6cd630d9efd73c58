// answer(x) is x + ADD instead of x + 1; with -DOTHER=N, other(x) is x + N.
#include <livepatch.h>
#include <stddef.h>

static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + ADD;
}

#ifdef OTHER
static int lp_other(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + OTHER;
}
#endif

static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = lp_answer },
#ifdef OTHER
	{ .old_name = "other", .new_func = lp_other },
#endif
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
