// 256 functions that call nothing, called in turn: what does a redirected call cost when many are?
//
//# target: gcc -O2 pie
//
// The command "measure" gives the time of one call, in picoseconds.
#include "scn.h"
#include "functions.h"

// Their first bytes differ, so that puns of them lead all over the place, as those of other functions do.
#define FUNCTION(n)                                                                                                     \
	PATCHABLE int answer_##n(int x)                                                                               \
	{                                                                                                             \
		unsigned y = x + 0x##n * 2654435761u;                                                                 \
		__asm__ volatile("" : "+r"(y));                                                                       \
		return y - 0x##n * 2654435761u + 1;                                                                   \
	}
ALL(FUNCTION)

static int each(int x)
{
#define CALL(n) x = answer_##n(x);
	ALL(CALL)
	return x;
}

static const char *scn_check(void)
{
	int got = each(0);
	return got == 256 ? "old" : got == 512 ? "new" : "mixed";
}

static const char *scn_command(const char *line)
{
	static char text[64];
	if (strcmp(line, "measure"))
		return "unknown command";
	enum { ROUNDS = 20000 };
	struct timespec from, to;
	volatile int x = 0;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < ROUNDS; i++)
		x = each(x & 0xff);
	clock_gettime(CLOCK_MONOTONIC, &to);
	int64_t ns = (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec;
	snprintf(text, sizeof text, "%ld", (long)(ns * 1000 / (ROUNDS * 256ll)));
	return text;
}

int main(void)
{
	scn_serve();
}
