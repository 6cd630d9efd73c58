// Two functions whose entries lie within five bytes of each other. How the first one jumps depends on the second one's
// first byte, which is a jump itself while a patch of both is loaded.
//
//# target: gcc -O2 pie
//# source: funcs.S
//
// "check": the names of those that are new; "old" if none is.
#include "scn.h"

#define EACH(F) F(first_1, 7) F(second_1, 127) F(first_2, 7) F(second_2, 127) F(first_3, 7) F(second_3, 127) F(first_4, 7) \
	F(second_4, 127)

#define DECLARE(name, result) extern int name(int);
EACH(DECLARE)

// eax is 7 when the function is entered.
__attribute__((naked, noinline)) static int call(int (*function)(int) __attribute__((unused)))
{
	__asm__("mov %rdi, %rdx\n mov $7, %edi\n mov $7, %eax\n sub $8, %rsp\n call *%rdx\n add $8, %rsp\n ret\n");
}

static const char *look(char *text, int size)
{
	int length = 0;
	text[0] = 0;
#define LOOK(name, result)                                                                                              \
	{                                                                                                              \
		int got = call(name);                                                                                 \
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
#include "no_command.h"

int main(void)
{
	scn_thread(spin, NULL);
	scn_serve();
}
