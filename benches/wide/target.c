// 1024 functions that call nothing, the first 16, 32, 64, 256 or all of them called in turn: what does a redirected call
// cost when many are?
//
//# target: gcc -O2 pie
//
// The command "measure COUNT" gives the time of one call, in picoseconds.
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
ALL_1024(FUNCTION)

#define CALL(n) x = answer_##n(x);
#define EACH(count)                                                                                                     \
	static int each_##count(int x)                                                                                \
	{                                                                                                             \
		ALL_##count(CALL) return x;                                                                           \
	}
EACH(16)
EACH(32)
EACH(64)
EACH(256)
EACH(1024)

static const struct {
	int count;
	int (*each)(int);
} sets[] = { { 16, each_16 }, { 32, each_32 }, { 64, each_64 }, { 256, each_256 }, { 1024, each_1024 } };
enum { SETS = sizeof sets / sizeof *sets, CALLS = 1 << 22 };

static const char *scn_check(void)
{
	int got = each_1024(0);
	for (int i = 0; i < SETS; i++)
		if (got == 1024 + sets[i].count)
			return "new";
	return got == 1024 ? "old" : "mixed";
}

static const char *scn_command(const char *line)
{
	static char text[64];
	int count, set = 0;
	if (sscanf(line, "measure %d", &count) != 1)
		return "unknown command";
	while (set < SETS && sets[set].count != count)
		set++;
	if (set == SETS)
		return "unknown count";
	struct timespec from, to;
	volatile int x = 0;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < CALLS / count; i++)
		x = sets[set].each(x & 0xff);
	clock_gettime(CLOCK_MONOTONIC, &to);
	int64_t ns = (to.tv_sec - from.tv_sec) * 1000000000ll + to.tv_nsec - from.tv_nsec;
	snprintf(text, sizeof text, "%ld", (long)(ns * 1000 / CALLS));
	return text;
}

int main(void)
{
	scn_serve();
}
