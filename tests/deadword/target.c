// An address within the replaced function lies on a task's stack, but it is no return address: a dead word. In a small
// frame it does not hold the task. In a large one, where a coroutine's stack might lie, it does, and status says where.
//
//# target: gcc -O0,-O2 pie
//
// Arguments: number of words in the frame that holds the dead one; 1: the task calls the function all the time from
// there instead of being blocked.
// Commands: "where" gives the bounds of the frame that holds the word; "release" lets the task leave that frame.
#include "scn.h"

static int pipe_ends[2], word_count, busy;
static atomic_ulong rounds;
static _Atomic uintptr_t frame_low, frame_high;
static atomic_int released;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

__attribute__((noinline)) static void hold(void)
{
	volatile uintptr_t *words = __builtin_alloca(word_count * sizeof *words);
	for (int i = 0; i < word_count; i++)
		words[i] = 0;
	words[word_count / 2] = (uintptr_t)&answer + 2;
	// It must be on the stack only.
	__asm__ volatile("xor %%eax,%%eax; xor %%ecx,%%ecx; xor %%edx,%%edx; xor %%esi,%%esi; xor %%edi,%%edi;"
			 "xor %%r8d,%%r8d; xor %%r9d,%%r9d; xor %%r10d,%%r10d; xor %%r11d,%%r11d"
			 ::: "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
	atomic_store(&frame_high, (uintptr_t)&words[word_count]);
	atomic_store(&frame_low, (uintptr_t)&words[0]);
	while (busy && !atomic_load(&released)) {
		answer(1);
		atomic_fetch_add(&rounds, 1);
	}
	char byte;
	while (read(pipe_ends[0], &byte, 1) < 0)
		scn_broken("read: %m");
	for (int i = 0; i < word_count; i++)
		words[i] = 0;
}

static void *holder(void *argument)
{
	hold();
	// Bury what is left of the frame.
	volatile char grave[4096];
	memset((char *)grave, 0, sizeof grave);
	atomic_store(&released, 1);
	for (;;) {
		answer(1);
		scn_nap_us(1000);
	}
	return argument;
}

static const char *scn_check(void)
{
	for (unsigned long before = atomic_load(&rounds); busy && atomic_load(&rounds) < before + 2;)
		scn_nap_us(100);
	return answer(40) == 41 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	static char text[128];
	if (!strcmp(line, "where")) {
		snprintf(text, sizeof text, "%#lx %#lx", (long)frame_low, (long)frame_high);
		return text;
	}
	if (busy)
		atomic_store(&released, 1);
	(void)!write(pipe_ends[1], "", 1);
	while (!atomic_load(&released))
		scn_nap_us(100);
	return "ok";
}

int main(int count, char **values)
{
	word_count = scn_argument(count, values, 1, 64);
	busy = scn_argument(count, values, 2, 0);
	(void)!pipe(pipe_ends);
	pthread_setname_np(scn_thread(holder, NULL), "holder");
	while (!atomic_load(&frame_low))
		scn_nap_us(100);
	scn_nap_us(2000);
	scn_serve();
}
