// A C program in which a task can keep the lock of libgcc's unwinder: it is in the middle of a search for call frame
// information, which allocates memory, which waits here.
//
//# target: gcc -O2 pie
//# mappings: own
//# link: -Wl,--no-as-needed -lgcc_s -Wl,--export-dynamic
//
// Commands: "hold" and "let go". A task sleeps in nanosleep all the time: the only one that can call a function.
#include "scn.h"
#include <signal.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

struct bases {
	void *text, *data, *function;
};
void __register_frame_info(const void *begin, void *object);
const void *_Unwind_Find_FDE(void *pc, struct bases *bases);
void *__libc_malloc(size_t size);

static atomic_int held;
static _Thread_local int holder;
static atomic_long naps;

// Waits by itself, so that nobody takes it for a place where a function can be called.
void *malloc(size_t size)
{
	if (holder) {
		holder = 0;
		atomic_store(&held, 2);
		while (atomic_load(&held))
			;
	}
	return __libc_malloc(size);
}

// Call frame information for one byte of code, and its end.
extern const char information[];
__asm__(".pushsection .data\n .balign 8\n information:\n"
	"1: .long 3f-2f\n 2: .long 0\n .byte 1\n .asciz \"zR\"\n .uleb128 1\n .sleb128 -8\n .byte 16\n .uleb128 1\n .byte 0x1b\n"
	".byte 0xc, 7, 8, 0x90, 1\n .balign 8\n 3:\n"
	".long 5f-4f\n 4: .long 4b-1b\n .long answer-.\n .long 1\n .uleb128 0\n .balign 8\n 5: .long 0\n .popsection\n");

static void *hold(void *argument)
{
	static uint64_t object[8];
	struct bases bases;
	__register_frame_info(information, object);
	holder = 1;
	_Unwind_Find_FDE((char *)&answer + 1, &bases);
	return argument;
}

static void *nap(void *argument)
{
	for (;;) {
		scn_nap_us(2000);
		atomic_fetch_add(&naps, 1);
	}
	return argument;
}

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

static const char *scn_command(const char *line)
{
	static char text[32];
	if (!strcmp(line, "hold")) {
		atomic_store(&held, 1);
		scn_thread(hold, NULL);
		while (atomic_load(&held) != 2)
			scn_nap_us(100);
	} else if (!strcmp(line, "let go")) {
		atomic_store(&held, 0);
	} else if (!strcmp(line, "naps")) {
		snprintf(text, sizeof text, "%ld", atomic_load(&naps));
		return text;
	} else {
		return "unknown command";
	}
	return "ok";
}

static void handler(int signal)
{
	(void)signal;
	scn_serve();
}

int main(void)
{
	scn_thread(nap, NULL);
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
}
