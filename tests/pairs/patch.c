// -DFIRST=NAME, -DSECOND=NAME: replaces that function, or both.
#include <livepatch.h>
#include <stddef.h>

#define STRING_(x) #x
#define STRING(x) STRING_(x)

#ifdef FIRST
static int lp_first(int x)
{
	__asm__ volatile("" : "+r"(x));
	return x + 1000;
}
#endif
#ifdef SECOND
static int lp_second(int x)
{
	__asm__ volatile("" : "+r"(x));
	return x + 1120;
}
#endif

static struct klp_func funcs[] = {
#ifdef FIRST
	{ .old_name = STRING(FIRST), .new_func = lp_first },
#endif
#ifdef SECOND
	{ .old_name = STRING(SECOND), .new_func = lp_second },
#endif
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
