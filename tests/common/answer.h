// The smallest program there is to patch: one function, called by the main task.
#include "scn.h"

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}
#include "no_command.h"
