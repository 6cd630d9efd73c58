// The other answer_me().
#include "patchable.h"

static PATCHABLE int answer_me(int x)
{
	BARRIER();
	return x + 20;
}

int ask_the_other(int x)
{
	return answer_me(x);
}
