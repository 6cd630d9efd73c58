// A program of musl that contains libgcc's unwinder, and uses it.
//
//# target: musl-gcc -O2 pie,static
//# source: find.c
//# link: -Wl,--eh-frame-hdr
#include "scn.h"
#include <signal.h>

// unwind.h of gcc, which musl-gcc does not look for.
struct _Unwind_Context;
int _Unwind_Backtrace(int (*step)(struct _Unwind_Context *, void *), void *argument);
unsigned long _Unwind_GetIP(struct _Unwind_Context *context);

static int main_seen;
int main(void);

static int step(struct _Unwind_Context *context, void *argument)
{
	unsigned long offset = _Unwind_GetIP(context) - (unsigned long)main;
	(void)argument;
	main_seen |= offset < 256;
	return 0;
}

void look(void)
{
	main_seen = 0;
	_Unwind_Backtrace(step, NULL);
}

PATCHABLE int answer(int x)
{
	look();
	return x + 1;
}

static const char *scn_check(void)
{
	int got = answer(1);
	return !main_seen ? "main() is not seen" : got == 2 ? "old" : "new";
}
#include "no_command.h"

static void handler(int signal)
{
	(void)signal;
}

int main(void)
{
	// Without a handler a static program has no code that returns from one, and is refused for that.
	signal(SIGUSR1, handler);
	scn_serve();
}
