// What a name means that exists in two versions, that may be missing, or that the program refers to weakly: for the patch
// what it means for the program.
//
//# target: gcc,clang -O2 pie,no-pie
//# patch: gcc,clang -O2,-O0 pic
#include "scn.h"

// Unlike the one of today it does not allocate.
char *old_realpath(const char *path, char *into);
__asm__(".symver old_realpath, realpath@GLIBC_2.2.5");

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

__attribute__((used)) int there = 5;

static const char *scn_check(void)
{
	char *got = old_realpath("/", NULL);
	if (got)
		return "realpath() is that of today";
	switch (answer(40)) {
	case 41: return "old";
	case 42: return "new";
	case 50: return "wrong realpath()";
	case 60: return "what is missing is there";
	case 70: return "what is there is missing";
	default: return "wrong";
	}
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
