// A C++ program and a patch in C++, with templates, virtual functions, static members, static local variables.
//
//# target: gcc,clang -O2 pie,no-pie
//# patch: gcc,clang -O2 pic
//# source: work.cc
//# link: -lstdc++
#include "scn.h"

int round_trip(void);

static const char *scn_check(void)
{
	static char wrong[32];
	int version = round_trip();
	snprintf(wrong, sizeof wrong, "wrong: %d", version);
	return version == 1 ? "old" : version == 2 ? "new" : wrong;
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
