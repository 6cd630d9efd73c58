// -DLIBRARY="\"NAME\"" -DCONSTANT=N: 1000 more from that library's lib_answer(). Without: the program's own answer().
// With -DHOLD the program's hold() too.
#include <livepatch.h>
#include <stddef.h>

#ifdef LIBRARY
static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + CONSTANT + 1000;
}
static struct klp_func funcs[] = { { .old_name = "lib_answer", .new_func = lp_answer }, { } };
#else
#define LIBRARY NULL
static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}
static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
#endif
#ifdef HOLD
extern void hold_serve(int version);
static void lp_hold(void)
{
	hold_serve(2);
	__asm__ volatile("" ::: "memory");
}
static struct klp_func hold[] = { { .old_name = "hold", .new_func = lp_hold }, { } };
#endif
static struct klp_object objs[] = {
	{ .name = LIBRARY, .funcs = funcs },
#ifdef HOLD
	{ .name = NULL, .funcs = hold },
#endif
	{ }
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
