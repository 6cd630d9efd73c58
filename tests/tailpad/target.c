// outer() leaves to inner() by a jump, and inner() is entered by way of padding: between the two jumps nothing of outer() is
// left on the stack.
//
//# target: gcc -O2 pie
//
// Old outer() gives 1 and old inner() adds 1; the new ones give 10 and add 2. Commands: "tid": of the worker. "go": it calls
// outer(), and waits in it until "release".
#include "scn.h"

extern int outer(void);
extern int inner(int);
__asm__(".text\n .p2align 4\n .globl outer\n .type outer, @function\n"
	"outer: sub $8, %rsp\n call wait_here\n add $8, %rsp\n mov $1, %edi\n jmp inner\n .size outer, . - outer\n"
	".p2align 4\n .byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0\n"
	".globl inner\n .type inner, @function\n"
	"inner: lea 1(%rdi), %eax\n ret\n .size inner, . - inner\n .p2align 4\n");

static __thread int is_worker;
static atomic_int worker, going, released;

void wait_here(void)
{
	while (is_worker && !atomic_load(&released))
		scn_nap_us(1000);
}

static const char *verdict(int got)
{
	return got == 2 ? "old" : got == 12 ? "new" : "mixed";
}

static void *work(void *argument)
{
	is_worker = 1;
	atomic_store(&worker, gettid());
	for (;;) {
		while (!atomic_load(&going))
			scn_nap_us(1000);
		int got = outer();
		if (!strcmp(verdict(got), "mixed"))
			scn_broken("outer() is %d", got);
		atomic_store(&going, 0);
	}
	return argument;
}

static const char *scn_check(void)
{
	return verdict(outer());
}

static const char *scn_command(const char *line)
{
	static char text[16];
	if (!strcmp(line, "tid")) {
		snprintf(text, sizeof text, "%d", atomic_load(&worker));
		return text;
	}
	if (!strcmp(line, "go")) {
		atomic_store(&released, 0);
		atomic_store(&going, 1);
	} else if (!strcmp(line, "release")) {
		atomic_store(&released, 1);
	} else {
		return "unknown command";
	}
	return "ok";
}

int main(void)
{
	scn_thread(work, NULL);
	while (!atomic_load(&worker))
		scn_nap_us(100);
	scn_serve();
}
