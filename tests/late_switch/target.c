// A program of two tasks that opens a library which switches stacks, when it is told to ("open PATH"): what was found of
// its code before does not hold any more.
//
//# target: gcc -O2 pie
//# link: -ldl
#include "scn.h"
#include <dlfcn.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

static const char *scn_command(const char *line)
{
	if (strncmp(line, "open ", 5))
		return "?";
	return dlopen(line + 5, RTLD_NOW) ? "ok" : dlerror();
}

static void *sleeps(void *argument)
{
	for (;;)
		scn_nap_us(100000);
	return argument;
}

int main(void)
{
	scn_thread(sleeps, NULL);
	scn_serve();
}
