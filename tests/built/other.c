#include "parts.h"
#include "patchable.h"

static volatile int calls = 10;

static PATCHABLE int answer(int x)
{
	BARRIER();
	return x + calls;
}

int other_ask(int x)
{
	int got = answer(x) + 1;
	BARRIER();
	return got;
}
