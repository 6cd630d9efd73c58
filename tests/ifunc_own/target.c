// A program with indirect functions (IFUNC) of its own that nothing in it calls, so that nobody has resolved them.
//
//# target: gcc,clang -O2,-O0 pie,no-pie,static,static-pie
//# patch: gcc,clang -O2,-O0 pic
#include "scn.h"
#include <signal.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static int two(void)
{
	return 2;
}

typedef int (*number)(void);
static atomic_int asked;

__attribute__((used)) static number choose(void)
{
	*(volatile int *)&asked = 1;
	return two;
}
__attribute__((used, ifunc("choose"))) int chosen(void);

// As compilers make them, for several processors: __cpu_indicator_init() is called.
static int triple(int x)
{
	return 3 * x;
}

__attribute__((target("avx2"))) static int triple_avx2(int x)
{
	return 3 * x;
}

typedef int (*function)(int);

__attribute__((used)) static function choose_by_processor(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("avx2") ? triple_avx2 : triple;
}
__attribute__((used, ifunc("choose_by_processor"))) int cloned(int x);

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

static const char *scn_command(const char *line)
{
	if (!strcmp(line, "asked"))
		return atomic_load(&asked) ? "yes" : "no";
	return "unknown command";
}

static void handler(int signal)
{
	(void)signal;
}

int main(void)
{
	// A static program has what returns from a signal handler only if it has one.
	signal(SIGUSR1, handler);
	scn_serve();
}
