// A program of several files, built by make, stripped, and patched by `livegraft build` from a diff of its source: see
// the diffs beside it. Two files have static variables and functions of one name.
//
//# target: gcc -O2 pie
//# source: one.c other.c more.c
#include "scn.h"
#include "parts.h"

static const char *scn_check(void)
{
	int before = counted();
	int got = ask(40);
	if (counted() != before + 1)
		return "another counter";
	if (other_ask(1) != 12)
		return "the other file's function";
	if (keep() != 5)
		return "another member";
	int sum = spread(1, 2, 3, 4);
	if (sum == 136)
		return "new";
	if (sum != 36)
		return "registers were lost";
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
