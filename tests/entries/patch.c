// -DONLY=name: that function alone; else all of them. -DHOLD: hold() too.
#include <livepatch.h>
#include <stddef.h>
#include "list.h"

#define NEW(name, argument, result)                                                                                     \
	static __attribute__((unused)) int lp_##name(int x)                                                             \
	{                                                                                                              \
		__asm__ volatile("" : "+r"(x));                                                                       \
		return result + 1000;                                                                                 \
	}
FUNCTIONS(NEW)

extern void hold_serve(int version);
static __attribute__((unused)) void lp_hold(void)
{
	hold_serve(2);
	__asm__ volatile("" ::: "memory");
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

static struct klp_func funcs[] = {
#ifdef HOLD
	{ .old_name = "hold", .new_func = lp_hold },
#endif
#ifdef ONLY
	{ .old_name = STRING(ONLY), .new_func = PASTE(lp_, ONLY) },
#else
#define FUNC(name, argument, result) { .old_name = #name, .new_func = lp_##name },
	FUNCTIONS(FUNC)
#endif
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
