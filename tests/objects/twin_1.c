// twin(), number 1 of the executable.
#include "patchable.h"

static int twin_counter = 1;

static PATCHABLE int twin(int x)
{
	BARRIER();
	return x + 100 + twin_counter - 1;
}

int call_twin_1(int x)
{
	return twin(x);
}
