// An address within the replaced function lies on a blocked task's stack, but it is no return address: a dead word.
// It may hold the task up, and then status says where it lies.
//
//# target: gcc -O0 pie
//
// Commands: "where" gives the bounds of the frame that holds the word; "release" lets the task leave that frame.
#include "scn.h"

static int pipe_ends[2];
static _Atomic uintptr_t frame_low, frame_high;
static atomic_int released;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

__attribute__((noinline)) static void hold(void)
{
	volatile uintptr_t words[64];
	for (int i = 0; i < 64; i++)
		words[i] = 0;
	words[32] = (uintptr_t)&answer + 2;
	atomic_store(&frame_high, (uintptr_t)&words[64]);
	atomic_store(&frame_low, (uintptr_t)&words[0]);
	char byte;
	while (read(pipe_ends[0], &byte, 1) < 0)
		scn_broken("read: %m");
	for (int i = 0; i < 64; i++)
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
	return answer(40) == 41 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	static char text[128];
	if (!strcmp(line, "where")) {
		snprintf(text, sizeof text, "%#lx %#lx", (long)frame_low, (long)frame_high);
		return text;
	}
	(void)!write(pipe_ends[1], "", 1);
	while (!atomic_load(&released))
		scn_nap_us(100);
	return "ok";
}

int main(void)
{
	(void)!pipe(pipe_ends);
	pthread_setname_np(scn_thread(holder, NULL), "holder");
	while (!atomic_load(&frame_low))
		scn_nap_us(100);
	scn_nap_us(2000);
	scn_serve();
}
