// mix() gives one more.
#include <livepatch.h>
#include <stddef.h>

static long lp_mix(long a, long b)
{
	volatile long words[8];
	for (int i = 0; i < 8; i++)
		words[i] = a * i + b;
	long sum = 1;
	for (int i = 0; i < 8; i++)
		sum += words[i];
	return sum;
}

static struct klp_func funcs[] = { { .old_name = "mix", .new_func = lp_mix }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
