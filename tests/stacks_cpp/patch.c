// Version 2 of app::Queue<int>::hold(long).
#include <livepatch.h>

extern void wait_here(void);

static int lp_hold(void *self, long rounds)
{
	(void)self;
	wait_here();
	__asm__ volatile("" ::: "memory");
	return rounds + 2;
}

static struct klp_func funcs[] = { { .old_name = "_ZN3app5QueueIiE4holdEl", .new_func = lp_hold }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
