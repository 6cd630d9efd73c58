// Contract 2 instead of 1, on both sides; each call of the callee adds 2.
#include <livepatch.h>
#include <stddef.h>

extern int callee(int contract, int x);
extern void contract_broken(int expected, int got);
extern int nanosleep(const void *, void *);

static int lp_callee(int contract, int x)
{
	if (contract != 2)
		contract_broken(2, contract);
	return x + 2;
}

static int lp_caller(int x, long nap)
{
	int first = callee(2, x);
	if (nap) {
		long time[2] = { 0, nap * 1000 };
		nanosleep(time, (void *)0);
	}
	int second = callee(2, first);
	return second;
}

static struct klp_func funcs[] = {
	{ .old_name = "caller", .new_func = lp_caller },
	{ .old_name = "callee", .new_func = lp_callee },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
