// The scale leaves the tare out, and the shelf knows.
#include <livepatch.h>

struct scale;
struct scale_functions {
	void *destructors[2];
	int (*weigh)(const struct scale *self, int load);
};
struct scale {
	const struct scale_functions *functions;
};
struct shelf {
	void *labels[3];
	struct scale *scale;
	int tare;
};

static int lp_weigh(const struct scale *self, int load)
{
	(void)self;
	__asm__ volatile("" ::: "memory");
	return load;
}

static int lp_put(struct shelf *self, int load)
{
	int said = self->scale->functions->weigh(self->scale, load);
	__asm__ volatile("" ::: "memory");
	return said == load ? 2 : 0;
}

static struct klp_func exe_funcs[] = { { .old_name = "_ZN3app5Shelf3putEi", .new_func = lp_put }, { } };
static struct klp_func lib_funcs[] = { { .old_name = "_ZNK3lib7BalanceIsE5weighEi", .new_func = lp_weigh }, { } };
static struct klp_object objs[] = {
	{ .name = NULL, .funcs = exe_funcs },
	{ .name = "libscenario.so", .funcs = lib_funcs },
	{ }
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
