// Programs without a dynamic loader, or with another C library's: a patch reaches the program's own functions and
// variables, the C library in it, and thread-local variables, just the same.
//
//# target: gcc,clang,musl-gcc -O2 static,static-pie
//# patch: gcc -O2 pic
//# mappings: own
#include "scn.h"
#include <signal.h>

static __thread __attribute__((used)) int thread_value = 20;
static __attribute__((used)) int hidden_variable = 5;
static atomic_ulong rounds;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

// In the new version: "new text <x> <thread_value> <hidden_variable>" with snprintf and memcpy; -1 unless
// the program's stderr can be flushed.
PATCHABLE int describe(char *into, size_t size, int x)
{
	return snprintf(into, size, "old text %d", x);
}

static void *spin(void *argument)
{
	thread_value = 21;
	for (int x = 0;; x = (x + 1) & 0xffff) {
		int got = answer(x) - x;
		if (got != 1 && got != 2)
			scn_broken("answer(%d) is %d", x, got + x);
		char text[64];
		int length = describe(text, sizeof text, 7);
		if (strcmp(text, "old text 7") && strcmp(text, "new text 7 21 5"))
			scn_broken("describe() is %d: %s", length, text);
		atomic_fetch_add(&rounds, 1);
		if (x % 64 == 0)
			scn_nap_us(100);
	}
	return argument;
}

static const char *scn_check(void)
{
	char text[64];
	int length = describe(text, sizeof text, 3), got = answer(40);
	for (unsigned long before = atomic_load(&rounds); atomic_load(&rounds) < before + 10;)
		scn_nap_us(100);
	if (length == 10 && !strcmp(text, "old text 3") && got == 41)
		return "old";
	if (length == 15 && !strcmp(text, "new text 3 20 5") && got == 42)
		return "new";
	return "wrong";
}
#include "no_command.h"

static void nothing(int signal)
{
	(void)signal;
}

int main(void)
{
	fflush(stderr);
	// A program that handles no signal has no way back from a handler in it, which livegraft needs: see refuse/sigreturn.
	signal(SIGUSR1, nothing);
	for (int i = 0; i < 3; i++)
		scn_thread(spin, NULL);
	scn_serve();
}
