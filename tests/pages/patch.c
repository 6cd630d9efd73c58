// Replaces those of low(), straddler(), high() and quiet() that -DLOW and so on name: 1000 more each.
#include <livepatch.h>
#include <stddef.h>

#define NEW(name, result)                                                                                               \
	static int lp_##name(void)                                                                                     \
	{                                                                                                              \
		int value = result + 1000;                                                                            \
		__asm__ volatile("" : "+r"(value));                                                                   \
		return value;                                                                                         \
	}

#ifdef LOW
NEW(low, 1)
#endif
#ifdef QUIET
NEW(quiet, 2)
#endif
#ifdef STRADDLER
NEW(straddler, 3)
#endif
#ifdef HIGH
NEW(high, 4)
#endif

static struct klp_func funcs[] = {
#ifdef LOW
	{ .old_name = "low", .new_func = lp_low },
#endif
#ifdef QUIET
	{ .old_name = "quiet", .new_func = lp_quiet },
#endif
#ifdef STRADDLER
	{ .old_name = "straddler", .new_func = lp_straddler },
#endif
#ifdef HIGH
	{ .old_name = "high", .new_func = lp_high },
#endif
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
