// A coroutine's stack lies in a variable of the main task's outermost function, and switching is the program's own code,
// which nothing betrays. While the coroutine is suspended within the replaced function, that is on no task's call chain;
// yet it will return into it.
//
//# target: gcc -O0,-O2 pie
//
// Commands: "suspend": the coroutine calls the function and is suspended in it; "finish": it goes on to the end of the
// function, gives its result, "old" or "new", and calls it once more to the end.
#include "scn.h"

static void *outside, *inside;
static int in_function, result, again;

// Saves what a function must keep, changes stacks, and restores: the usual few instructions.
void change(void **save, void *load);
__asm__(".text\n .globl change\n .type change, @function\n"
	"change: push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
	" mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
	" pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n .size change, . - change\n");

void suspend(void)
{
	change(&inside, outside);
}

// Not the same before and after its suspension if a task changes versions in between: the patch counts differently.
PATCHABLE int count(int yes)
{
	int before = in_function;
	in_function = before + 1;
	if (yes)
		suspend();
	return in_function - before;
}

static void body(void)
{
	for (;;) {
		result = count(1);
		again = count(0);
		suspend();
	}
}

static const char *name(int value)
{
	return value == 1 ? "old" : value == 100 ? "new" : "mixed";
}

static const char *scn_check(void)
{
	int keep = in_function;
	int got = count(0);
	in_function = keep;
	return name(got);
}

static const char *scn_command(const char *line)
{
	change(&outside, inside);
	if (!strcmp(line, "suspend"))
		return "ok";
	return result == 1 && again == 1 ? "old" : result == 1 && again == 100 ? "old, then new" : name(result);
}

int main(void)
{
	char stack[65536] __attribute__((aligned(64)));
	void **top = (void **)(stack + sizeof stack) - 2;
	*--top = (void *)body;
	inside = top - 6;
	scn_serve();
	return stack[0];
}
