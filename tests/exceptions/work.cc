#include "patchable.h"
#include "work.h"

// 1, for all that a compiler can tell: clang would use in callers that a function returns a constant.
static int one(void)
{
	int value = 1;
	__asm__ volatile("" : "+r"(value));
	return value;
}

PATCHABLE void fail(int code)
{
	BARRIER();
	if (code > 0)
		throw Trouble(code);
}

// An exception passes through it.
PATCHABLE int middle(int code, int &destroyed)
{
	Guard guard{destroyed};
	BARRIER();
	fail(code);
	return one();
}

// Its replacement throws. It might throw itself: else the compiler would know, and its callers would not be prepared.
PATCHABLE int thrower(int kind)
{
	BARRIER();
	fail(-kind);
	return one();
}

// Its replacement catches.
PATCHABLE int catcher(int code)
{
	BARRIER();
	fail(-code);
	return one();
}

// The new one destroys two.
extern "C" int passes(void)
{
	int destroyed = 0;
	try {
		middle(7, destroyed);
	} catch (const Failure &failure) {
		return failure.code == 7 && destroyed <= 2 ? destroyed : 0;
	}
	return 0;
}

// 3: the task went from one version to the other between two calls.
extern "C" int throws(void)
{
	int caught = 0;
	for (int kind = 1; kind <= 3; kind++)
		try {
			caught += thrower(kind) == 1 ? 10 : 0;
		} catch (const Trouble &trouble) {
			caught += trouble.code == 1 ? 1 : 100;
		} catch (const std::runtime_error &error) {
			caught += std::string(error.what()) == "thrown by the patch" ? 1 : 100;
		} catch (int code) {
			caught += code == 3 ? 1 : 100;
		}
	if (caught / 10 + caught % 10 != 3)
		return 0;
	return caught == 30 ? 1 : caught == 3 ? 2 : 3;
}

extern "C" int catches(void)
{
	return catcher(5);
}
