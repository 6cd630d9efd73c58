// twin(), number 2 of the executable.
#include "patchable.h"

static int twin_counter = 2;

static PATCHABLE int twin(int x)
{
	BARRIER();
	return x + 200 + twin_counter - 2;
}

int call_twin_2(int x)
{
	return twin(x);
}
