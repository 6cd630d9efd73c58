// Leaf functions keep values below the stack pointer; a task stopped in one must find them again. One of the leaves is
// replaced itself.
//
//# layout: random
//# target: gcc,clang -O1,-O2 pie,no-pie
#include "scn.h"

static struct {
	atomic_ulong rounds;
	atomic_int version;
} workers[3];

// Sixteen words in the red zone, written and read again and again; no frame (asserted by the asm: rsp never moves).
__attribute__((naked, noinline)) static long leaf(long seed __attribute__((unused)))
{
	__asm__("xor %eax, %eax\n"
		"mov $2000, %ecx\n"
		"1: mov %rdi, -8(%rsp)\n"
		"lea 1(%rdi), %rdx\n mov %rdx, -64(%rsp)\n"
		"lea 2(%rdi), %rdx\n mov %rdx, -96(%rsp)\n"
		"lea 3(%rdi), %rdx\n mov %rdx, -128(%rsp)\n"
		"add -8(%rsp), %rax\n add -64(%rsp), %rax\n add -96(%rsp), %rax\n add -128(%rsp), %rax\n"
		"dec %ecx\n jnz 1b\n ret\n");
}

// The replaced leaf: the compiler's own use of the red zone.
PATCHABLE long mix(long a, long b)
{
	volatile long words[8];
	for (int i = 0; i < 8; i++)
		words[i] = a * i + b;
	long sum = 0;
	for (int i = 0; i < 8; i++)
		sum += words[i];
	return sum;
}

static void *work(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (long x = 1;; x = (x + 1) & 0xffff) {
		long got = leaf(x);
		if (got != 2000 * (4 * x + 6))
			scn_broken("leaf(%ld) is %ld", x, got);
		long sum = mix(x, 3) - (28 * x + 24);
		if (sum != 0 && sum != 1)
			scn_broken("mix(%ld) is off by %ld", x, sum);
		atomic_store(&workers[self].version, (int)sum + 1);
		atomic_fetch_add(&workers[self].rounds, 1);
	}
	return NULL;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < 3; i++) {
		unsigned long rounds = atomic_load(&workers[i].rounds);
		while (atomic_load(&workers[i].rounds) < rounds + 2)
			scn_nap_us(100);
		seen[workers[i].version]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

int main(void)
{
	for (intptr_t i = 0; i < 3; i++)
		scn_thread(work, (void *)i);
	scn_serve();
}
