// Each function says or does the same as the old one, and that it is new.
#include <livepatch.h>
#include <stddef.h>

extern int entered, step(void);
extern void wait_for_byte(void);

static void lp_job(void)
{
	__atomic_store_n(&entered, 2, __ATOMIC_SEQ_CST);
	wait_for_byte();
	__asm__ volatile("" ::: "memory");
}

static int lp_count(long *clear)
{
	*clear = 0;
	return 20 + step();
}

static int lp_step(void)
{
	__asm__ volatile("" ::: "memory");
	return 2;
}

static struct klp_func funcs[] = {
	{ .old_name = "job", .new_func = lp_job },
	{ .old_name = "count", .new_func = lp_count },
	{ .old_name = "step", .new_func = lp_step },
	{ },
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
