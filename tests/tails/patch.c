// hop() leaves to land() by its entry, land() to code of the patch, shout() through the PLT, choose() through a register;
// pick() has a table of jumps. Each adds one more.
#include <livepatch.h>
#include <stddef.h>
#include <unistd.h>

#define BARRIER() __asm__ volatile("" ::: "memory")
extern int land(int x);
extern int (*volatile chosen)(int);

static __attribute__((noipa)) int helper(int x)
{
	BARRIER();
	return x;
}

static int lp_land(int x)
{
	BARRIER();
	return helper(x + 2);
}

static int lp_hop(int x)
{
	BARRIER();
	return land(x * 2 + 1);
}

static int lp_choose(int x)
{
	BARRIER();
	return chosen(x);
}

static int lp_shout(int x)
{
	BARRIER();
	return usleep(x);
}

static int lp_pick(int x)
{
	switch (x) {
	case 0: BARRIER(); return 17;
	case 1: BARRIER(); return x * 31 + 5;
	case 2: BARRIER(); return 3;
	case 3: BARRIER(); return x ^ 77;
	case 4: BARRIER(); return -x;
	case 5: BARRIER(); return 42;
	case 6: BARRIER(); return x << 4;
	}
	return 1;
}

static struct klp_func funcs[] = {
	{ .old_name = "land", .new_func = lp_land },
	{ .old_name = "hop", .new_func = lp_hop },
	{ .old_name = "choose", .new_func = lp_choose },
	{ .old_name = "shout", .new_func = lp_shout },
	{ .old_name = "pick", .new_func = lp_pick },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
