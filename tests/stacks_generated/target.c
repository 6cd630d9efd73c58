// A task that runs code which the program made itself, called by the replaced answer(): nothing tells who called it.
//
//# target: gcc,clang -O2 pie
//
// Commands: "wake" lets the task leave answer() and enter it again.
#include "scn.h"
#include <sys/mman.h>

static void (*spin)(const char *flag);
static char flag = 1;
static atomic_int entered, version;

// The argument is used after the call, so that the function begins with more than a push.
PATCHABLE int answer(int x)
{
	__asm__ volatile("" : "+b"(x));
	spin(&flag);
	return x + 1;
}

void wait_here(void)
{
	spin(&flag);
}

static void *run(void *argument)
{
	for (;;) {
		__atomic_store_n(&flag, 1, __ATOMIC_SEQ_CST);
		atomic_fetch_add(&entered, 1);
		atomic_store(&version, answer(1) - 1);
	}
	return argument;
}

static const char *scn_check(void)
{
	int before = atomic_load(&entered);
	__atomic_store_n(&flag, 0, __ATOMIC_SEQ_CST);
	while (atomic_load(&entered) == before)
		scn_nap_us(100);
	return atomic_load(&version) == 1 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	return strcmp(line, "wake") ? "unknown command" : scn_check();
}

int main(void)
{
	// 1: cmpb $0,(%rdi); jne 1b; ret
	static const unsigned char code[] = { 0x80, 0x3f, 0, 0x75, 0xfb, 0xc3 };
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(page, code, sizeof code);
	if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
		scn_broken("mprotect: %m");
	spin = page;
	scn_thread(run, NULL);
	while (!atomic_load(&entered))
		scn_nap_us(100);
	scn_serve();
}
