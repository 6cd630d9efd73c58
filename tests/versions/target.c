// A function that several patches replace, one after the other or one upon the other, and one that only some of them
// replace too.
//
//# target: gcc -O2 pie
//
// "check": "old", or what answer() and other() add: "answer+3 other+2", say.
#include "scn.h"

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

PATCHABLE int other(int x)
{
	BARRIER();
	return x + 1;
}

static void *spin(void *argument)
{
	for (int x = 0;; x = (x + 1) & 0xffff) {
		int first = answer(x) - x, second = other(x) - x;
		if (first < 1 || first > 9 || second < 1 || second > 9)
			scn_broken("answer() added %d, other() %d", first, second);
	}
	return argument;
}

static const char *scn_check(void)
{
	static char text[64];
	int first = answer(40) - 40, second = other(40) - 40;
	if (first == 1 && second == 1)
		return "old";
	snprintf(text, sizeof text, "answer+%d other+%d", first, second);
	return text;
}
#include "no_command.h"

int main(void)
{
	scn_thread(spin, NULL);
	scn_serve();
}
