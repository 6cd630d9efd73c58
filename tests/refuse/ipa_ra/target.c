// The caller of a local leaf function keeps values in registers that a replacement would clobber (-fipa-ra).
//# target: gcc -O2 pie
//# pack-or-load: refuse leaf clobber|register
#include "scn.h"

// Not noipa: gcc may know what it leaves alone.
static __attribute__((noinline)) long leaf(long x)
{
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

__attribute__((noinline, used)) long caller(long a, long b, long c)
{
	long sum = leaf(a);
	return sum + 3 * b + 5 * c;
}

static const char *scn_check(void)
{
	return caller(1, 2, 3) == 23 ? "old" : "wrong";
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
