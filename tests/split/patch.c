// Each adds one more. shares_two() stays as it is.
#include <livepatch.h>
#include <stddef.h>

static int lp_with_cold(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static int lp_with_part(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 1;
}

static int lp_shares_one(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static struct klp_func funcs[] = {
	{ .old_name = "with_cold", .new_func = lp_with_cold },
	{ .old_name = "with_part", .new_func = lp_with_part },
	{ .old_name = "shares_one", .new_func = lp_shares_one },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
