// nap() says 2.
#include <errno.h>
#include <livepatch.h>
#include <stddef.h>
#include <time.h>

static int lp_nap(long microseconds)
{
	struct timespec time = { 0, microseconds * 1000 };
	while (nanosleep(&time, &time) && errno == EINTR)
		;
	__asm__ volatile("" ::: "memory");
	return 2;
}

static struct klp_func funcs[] = { { .old_name = "nap", .new_func = lp_nap }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
