#include "parts.h"
#include "patchable.h"
#include <assert.h>

static int calls;
static struct sum last;

static PATCHABLE int answer(int x)
{
	static int worst;
	calls++;
	assert(x < 1000);
	if (x > worst)
		worst = x;
	last.of = x;
	BARRIER();
	return x + ADDED;
}

int ask(int x)
{
	int got = answer(x);
	BARRIER();
	return got;
}

int counted(void)
{
	return calls + last.and;
}
