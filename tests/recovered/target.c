// A static function that uses static data and a thread-local variable, in a program that is stripped: what the patch
// names has addresses that were proven from the program's build.
//
//# target: gcc -O2 pie,no-pie
#include "scn.h"

static volatile int added = 1;
static __thread volatile int mine = 7;
static int counted;

__attribute__((noinline, noipa)) static int triple(int x)
{
	BARRIER();
	return x * 3 + 2;
}

__attribute__((noinline, noipa)) static int answer(int x)
{
	counted++;
	BARRIER();
	return x + added;
}

static const char *scn_check(void)
{
	int before = counted;
	int got = answer(40);
	if (counted != before + 1)
		return "another counter";
	if (triple(1) != 5 || mine != 7)
		return "another thread's";
	return got == 41 ? "old" : got == 42 + 5 + 7 ? "new" : "wrong";
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
