// A C program that has no unwinder until it calls backtrace() for the first time, in "check".
//
//# target: gcc -O2 pie
//# flags: -fno-exceptions
//# link: -rdynamic
//# mappings: own
#include "scn.h"
#include <execinfo.h>

static int seen_main;

void look(void)
{
	void *frames[64];
	int count = backtrace(frames, 64);
	char **names = backtrace_symbols(frames, count);
	seen_main = 0;
	for (int i = 0; names && i < count; i++)
		seen_main |= strstr(names[i], "(main+") != NULL;
	free(names);
}

PATCHABLE int answer(int x)
{
	look();
	BARRIER();
	return x + 1;
}

static const char *scn_check(void)
{
	int version = answer(0);
	return !seen_main ? "main() is not seen" : version == 1 ? "old" : "new";
}
#include "no_command.h"

int main(void)
{
	scn_serve();
}
