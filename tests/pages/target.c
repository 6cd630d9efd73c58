// Functions that share pages of text, one of them on two pages. Two threads call all of them but quiet() all the time.
//
//# target: gcc -O2 pie
//# source: funcs.S
//
// "check": the names of those that are new; "old" if none is. "quiet": "old" or "new", after a call of quiet().
#include "scn.h"

#define EACH(F) F(low, 1) F(straddler, 3) F(high, 4)
#define DECLARE(name, result) extern int name(void);
EACH(DECLARE)
extern int quiet(void);

static const char *look(char *text, int size)
{
	int length = 0;
	text[0] = 0;
#define LOOK(name, result)                                                                                              \
	{                                                                                                              \
		int got = name();                                                                                     \
		if (got == result + 1000)                                                                             \
			length += snprintf(text + length, size - length, length ? " " #name : #name);                   \
		else if (got != result)                                                                               \
			scn_broken(#name " is %d, neither %d nor %d", got, result, result + 1000);                      \
	}
	EACH(LOOK)
	return length ? text : "old";
}

static void *spin(void *argument)
{
	char text[256];
	for (;;)
		look(text, sizeof text);
	return argument;
}

static const char *scn_check(void)
{
	static char text[256];
	return look(text, sizeof text);
}

static const char *scn_command(const char *line)
{
	if (!strcmp(line, "quiet"))
		return quiet() == 2 ? "old" : "new";
	return "unknown command";
}

// gcc believes that it knows how functions are aligned.
static uintptr_t address(int (*function)(void))
{
	__asm__("" : "+r"(function));
	return (uintptr_t)function;
}

int main(void)
{
	uintptr_t page = address(straddler) / 4096;
	if (address(straddler) % 4096 != 4095 || address(low) / 4096 != page || address(quiet) / 4096 != page ||
	    address(high) / 4096 != page + 1)
		scn_broken("the functions do not lie where they should");
	scn_thread(spin, NULL);
	scn_thread(spin, NULL);
	scn_serve();
}
