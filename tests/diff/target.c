// A patch that `livegraft diff` makes of two versions of this file (with and without FIXED): functions that changed in the
// source, one into which another was inlined, one that relied on the registers of another, a switch, new functions and data,
// static variables that keep their values, and what did not change and is only referred to.
//
//# target: gcc,clang -O2 pie,no-pie
#include "scn.h"

#ifdef FIXED
#define IF_FIXED(a, b) a
#else
#define IF_FIXED(a, b) b
#endif

static int calls;
static int (*handler)(int);
static const char *const words[] = { "zero", "one", "two", IF_FIXED("THREE", "three") };

// Not changed, static, and called by what changes.
static __attribute__((noinline)) int scale(int x)
{
	static int count;
	count++;
	BARRIER();
	return x * 10 + (count < 0);
}

// Inlined into total().
static inline int add_tax(int x)
{
	return x + x / IF_FIXED(5, 10);
}

__attribute__((noinline)) int total(int x)
{
	calls++;
	return scale(add_tax(x));
}

// Has a static variable of the same name as scale().
__attribute__((noinline)) int counted(int by)
{
	static int count = 1000;
	count += by;
	BARRIER();
	return IF_FIXED(-count, count);
}

// gcc knows which registers it leaves alone, and keeps values of its caller in others.
static __attribute__((noinline)) int leaf(int x)
{
#ifdef FIXED
	__asm__ volatile("" : : : "rsi", "rdx", "rcx", "r8", "r9", "r10", "r11");
	return x * 3;
#else
	__asm__ volatile("");
	return x * 2;
#endif
}

__attribute__((noinline)) int relying(int a, int b, int c, int d)
{
	return leaf(a) + b * 100 + c * 1000 + d * 10000;
}

#ifdef FIXED
static int clamped;
static __attribute__((noinline)) int clamp(int x)
{
	if (x > 50) {
		clamped++;
		return 50;
	}
	return x;
}
#endif

__attribute__((noinline)) int dispatch(int x)
{
	switch (x) {
	case 0: return scale(1);
	case 1: return scale(2) + calls * 0;
	case 2: return (int)strlen(words[3]) + words[3][0];
	case 3: return IF_FIXED(scale(4), scale(3));
	case 4: return x < 0 ? scn_now_us() : 44;
	case 5: return IF_FIXED(clamp(99), 99);
	case 6: scn_broken("nobody asks for 6");
	}
	return -1;
}

__attribute__((noinline)) int factorial(int x)
{
	BARRIER();
	return x < 2 ? IF_FIXED(2, 1) : x * factorial(x - 1);
}

// The address of a function that changed is that of its entry, in old and new code.
__attribute__((noinline)) int same_handler(void)
{
	BARRIER();
	return handler == counted ? IF_FIXED(2, 1) : -1;
}

static const char *scn_check(void)
{
	static int expected = 1000;
	handler = counted;
	expected += 7;
	int got = counted(7);
	int fixed = got < 0;
	if ((fixed ? -got : got) != expected)
		return "the static variable lost its value";
	if (total(100) != (fixed ? 1200 : 1100))
		return "wrong total()";
	if (relying(1, 2, 3, 4) != 43200 + (fixed ? 3 : 2))
		return "wrong relying()";
	if (dispatch(0) != 10 || dispatch(1) != 20 || dispatch(4) != 44 || dispatch(9) != -1)
		return "wrong dispatch()";
	if (dispatch(2) != (fixed ? 5 + 'T' : 5 + 't') || dispatch(3) != (fixed ? 40 : 30))
		return "wrong dispatch() of what changed";
	if (dispatch(5) != (fixed ? 50 : 99))
		return "wrong clamp()";
	if (factorial(5) != (fixed ? 240 : 120))
		return "wrong factorial()";
	if (same_handler() != (fixed ? 2 : 1))
		return "wrong same_handler()";
	if (handler(0) != (fixed ? -expected : expected))
		return "wrong handler";
	return fixed ? "new" : "old";
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
