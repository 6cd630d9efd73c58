// A function whose first instruction is too short for a jump, behind padding that is one long NOP. By way of the padding
// its entry takes two jumps, and a task may be between them when they are taken back.
//
//# target: gcc -O2 pie
#include "scn.h"

enum { THREADS = 8 };

__asm__(".text\n .p2align 4\n .skip 5, 0x90\n .byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0\n"
	".globl padded\n .type padded, @function\n"
	"padded: lea 1(%rdi), %eax\n ret\n .size padded, . - padded\n"
	".byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0\n .p2align 4\n");
extern int padded(int);

static struct {
	atomic_ulong rounds;
	atomic_int version;
} threads[THREADS];

static void *spin(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (;;) {
		int got = 0;
		for (int i = 0; i < 100000; i++)
			got = padded(1);
		if (got != 2 && got != 3)
			scn_broken("padded(1) is %d", got);
		atomic_store(&threads[self].version, got - 1);
		atomic_fetch_add(&threads[self].rounds, 1);
	}
	return NULL;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < THREADS; i++) {
		unsigned long rounds = atomic_load(&threads[i].rounds);
		while (atomic_load(&threads[i].rounds) < rounds + 2)
			scn_nap_us(100);
		seen[atomic_load(&threads[i].version)]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

int main(void)
{
	for (intptr_t i = 0; i < THREADS; i++)
		scn_thread(spin, (void *)i);
	scn_serve();
}
