// Functions that leave by jumps of all kinds: to another function, to themselves, through the PLT, through a register,
// and through a table of their own jumps, which does not leave.
//
//# target: gcc,clang -O2 pie,no-pie
#include "scn.h"

static int (*volatile chosen)(int);

PATCHABLE int land(int x)
{
	BARRIER();
	return x + 1;
}

PATCHABLE int hop(int x)
{
	BARRIER();
	return land(x * 2);
}

PATCHABLE int choose(int x)
{
	BARRIER();
	return chosen(x);
}

PATCHABLE int shout(int x)
{
	BARRIER();
	return usleep(x);
}

PATCHABLE int pick(int x)
{
	switch (x) {
	case 0: BARRIER(); return 17;
	case 1: BARRIER(); return x * 31 + 5;
	case 2: BARRIER(); return 3;
	case 3: BARRIER(); return x ^ 77;
	case 4: BARRIER(); return -x;
	case 5: BARRIER(); return 40;
	case 6: BARRIER(); return x << 4;
	}
	return 1;
}

static const char *scn_check(void)
{
	int sum = hop(1) + choose(1) + shout(1) + pick(5);
	return sum == 45 ? "old" : sum == 50 ? "new" : "mixed";
}
#include "no_command.h"

int main(void)
{
	chosen = land;
	scn_serve();
}
