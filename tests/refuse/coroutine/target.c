// A coroutine of C++20 is suspended in what would be replaced.
//# source: body.cc
//# flags: -std=c++20 -Wno-error
//# link: -lstdc++
//# load: refuse numbers|coroutine
#include "scn.h"

int next_number(void);

static const char *scn_check(void)
{
	static int expected = 1;
	return next_number() == expected++ ? "old" : "new";
}

#include "no_command.h"

int main(void)
{
	scn_serve();
}
