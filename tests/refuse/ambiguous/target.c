// Two static functions of that name, and the patch does not say which.
//# source: other.c
//# pack: refuse answer_me sympos
#include "answer.h"

extern int ask_the_other(int);

static PATCHABLE int answer_me(int x)
{
	BARRIER();
	return x + 10;
}

int main(void)
{
	if (answer_me(1) + ask_the_other(1) != 32)
		return 1;
	scn_serve();
}
