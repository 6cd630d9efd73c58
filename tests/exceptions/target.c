// A C++ program under load: exceptions are thrown, passed through and caught everywhere around three functions.
//
// check: all functions in one version, or "mixed".
//
//# target: gcc,clang -O2 pie,no-pie
//# patch: gcc,clang -O2,-O0 pic
//# source: work.cc
//# link: -lstdc++
//# mappings: own
#include "scn.h"

// See work.cc: each goes through everything once and says which version it was, 0 for something else.
int passes(void);
int throws(void);
int catches(void);

static void *run(void *argument)
{
	for (;;) {
		if (!passes() || !throws() || !catches())
			scn_broken("an exception went astray");
		scn_nap_us(100);
	}
	return argument;
}

static const char *scn_check(void)
{
	int version = passes();
	if (throws() != version || catches() != version)
		return "mixed";
	return version == 1 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	(void)line;
	return "unknown command";
}

int main(void)
{
	for (int i = 0; i < 4; i++)
		scn_thread(run, NULL);
	scn_serve();
}
