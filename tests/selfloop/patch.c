// Adds a thousand for each round. With -DTAIL the next round begins in whichever version the task runs.
#include <livepatch.h>
#include <stddef.h>

#ifdef TAIL
extern long self_loop(long rounds, long sum);

static long lp_self_loop(long rounds, long sum)
{
	if (!rounds)
		return sum;
	__asm__ volatile("" : "+r"(sum));
	return self_loop(rounds - 1, sum + 1000);
}
#else
static long lp_self_loop(long rounds, long sum)
{
	for (; rounds; rounds--) {
		__asm__ volatile("" : "+r"(sum));
		sum += 1000;
	}
	return sum;
}
#endif

static struct klp_func funcs[] = { { .old_name = "self_loop", .new_func = lp_self_loop }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
