// Version 2 of all three.
#include <livepatch.h>

#include "work.h"

void fail(int code);

static int lp_middle(int code, int &destroyed)
{
	Guard guard{destroyed}, another{destroyed};
	fail(code);
	return 2;
}

static int lp_thrower(int kind)
{
	switch (kind) {
	case 1: throw Trouble(1);
	case 2: throw std::runtime_error("thrown by the patch");
	case 3: throw 3;
	}
	return 0;
}

// Caught here, thrown again, and caught once more.
static int lp_catcher(int code)
{
	try {
		try {
			fail(code);
		} catch (Failure &failure) {
			failure.code++;
			throw;
		}
	} catch (const Trouble &trouble) {
		return trouble.code == code + 1 ? 2 : 0;
	} catch (...) {
	}
	return 0;
}

static struct klp_func funcs[] = {
	{ "_Z6middleiRi", (void *)lp_middle, 0, false },
	{ "_Z7throweri", (void *)lp_thrower, 0, false },
	{ "_Z7catcheri", (void *)lp_catcher, 0, false },
	{ }
};
static struct klp_object objs[] = { { NULL, funcs, { } }, { } };
static struct klp_patch patch = { objs, NULL, false, false };
KLP_PATCH(patch);
