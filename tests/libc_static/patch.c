// libc's generator gets stuck.
#include <livepatch.h>

struct drand48_data;

static int lp_iterate(unsigned short state[3], struct drand48_data *buffer)
{
	(void)buffer;
	state[0] = state[1] = state[2] = 0;
	return 0;
}

static struct klp_func funcs[] = { { .old_name = NAME, .new_func = lp_iterate }, { } };
static struct klp_object objs[] = { { .name = "libc.so.6", .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
