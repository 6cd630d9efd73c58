// Another way to encode. The names are those of rustc's mangling, with a hash that the test finds out.
#include <livepatch.h>

extern unsigned long encode(unsigned long grain), decode(unsigned long flour);
KLP_SYM(encode, ENCODE, NULL, 0);
KLP_SYM(decode, DECODE, NULL, 0);

static unsigned long lp_encode(unsigned long grain)
{
	__asm__ volatile("" ::: "memory");
	return ~grain;
}

static unsigned long lp_decode(unsigned long flour)
{
	__asm__ volatile("" ::: "memory");
	return ~flour;
}

// <Mill<u32> as Grind>::grind(&self, u64)
static unsigned long lp_grind(const unsigned *self, unsigned long grain)
{
	unsigned long whole = grain ^ (*self == 0);
	unsigned long flour = encode(whole);
	return flour == ~whole && decode(flour) == whole ? 2 : 0;
}

static struct klp_func funcs[] = {
	{ .old_name = GRIND, .new_func = lp_grind },
	{ .old_name = ENCODE, .new_func = lp_encode },
	{ .old_name = DECODE, .new_func = lp_decode },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
