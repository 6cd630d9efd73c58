// One patch for an executable and a shared library: static functions picked by sympos, everything that patch code may
// refer to: libc functions, an IFUNC, libc data, new strings and variables, thread-local variables of executable and
// library, the target's own static variables.
//
//# layout: random
//# target: gcc,clang -O0,-O2 pie,no-pie
//# source: twin_1.c twin_2.c
//# library: lib.c
//# patch: gcc,clang -O0,-O1,-O2,-O3 pic,no-pic
//# may-refuse: R_X86_64_
#include "scn.h"

extern int lib_answer(int), lib_twin(int), call_twin_1(int), call_twin_2(int);
extern __thread int lib_thread_value;
__thread int thread_value = 20;
static __thread __attribute__((used)) int static_thread_value = 21;
static __attribute__((used)) int hidden_variable = 5;
int visible_variable = 6;
static atomic_long rounds;

// Something for the patch to call that is static and not replaced.
static PATCHABLE int helper(int x)
{
	BARRIER();
	return x * 2;
}

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

// In the new version: writes "new text <x> ..." with libc's snprintf, memcpy, strlen and stderr's address.
PATCHABLE int describe(char *into, size_t size, int x)
{
	return snprintf(into, size, "old text %d", x);
}

// In the new version: 1000 + the sum of all the thread-local variables of this task.
PATCHABLE int thread_values(void)
{
	BARRIER();
	return thread_value + lib_thread_value + static_thread_value;
}

// In the new version: counts its calls in a new static variable.
PATCHABLE int count_calls(void)
{
	int none = 0;
	// Or clang would know the result at the calls.
	__asm__ volatile("" : "+r"(none));
	return none;
}

static const char *look(char *text, size_t size, int own)
{
	int votes[2] = { 0 };
#define VOTE(name, got, old, new)                                                                                       \
	do {                                                                                                          \
		long value = got;                                                                                     \
		if (value == (old))                                                                                   \
			votes[0]++;                                                                                   \
		else if (value == (new))                                                                              \
			votes[1]++;                                                                                   \
		else                                                                                                  \
			scn_broken("%s is %ld, neither %ld nor %ld", name, value, (long)(old), (long)(new));            \
	} while (0)
	VOTE("answer", answer(10), 11, 12 + 20 + hidden_variable + visible_variable);
	VOTE("lib_answer", lib_answer(10), 11, 12 + 300);
	VOTE("twin 1", call_twin_1(10), 110, 10 + 100);
	VOTE("twin 2", call_twin_2(10), 210, 10 + 1200);
	VOTE("twin of the library", lib_twin(10), 3010, 10 + 4000);
	VOTE("thread_values", thread_values(), own + 71, own + 1071);
	// The task may move between any two of these calls; new ones count upwards from 100.
	int first = count_calls(), second = count_calls();
	VOTE("count_calls", first == 0 ? 0 : first > 100 ? 1 : 2, 0, 1);
	if (first && second && second <= first)
		scn_broken("count_calls went from %d to %d", first, second);
	char described[64];
	int length = describe(described, sizeof described, 7);
	VOTE("describe", !strcmp(described, "old text 7") && length == 10	 ? 0 :
			 !strcmp(described, "new text 7 and more!") && length == 20 ? 1 :
										   2,
	     0, 1);
	// twin 1 is not replaced and always votes old.
	if (votes[1] == 0)
		return "old";
	if (votes[0] == 1)
		return "new";
	snprintf(text, size, "old=%d new=%d", votes[0], votes[1]);
	return text;
}

static void *work(void *argument)
{
	int own = (int)(intptr_t)argument;
	char text[64];
	thread_value += own;
	for (;;) {
		look(text, sizeof text, own);
		atomic_fetch_add(&rounds, 1);
		if (own == 2)
			scn_nap_us(200);
	}
	return argument;
}

static const char *scn_check(void)
{
	static char text[64];
	long before = atomic_load(&rounds);
	while (atomic_load(&rounds) < before + 4)
		scn_nap_us(100);
	if (helper(hidden_variable) != 10)
		scn_broken("helper");
	hidden_variable = 5;
	return look(text, sizeof text, 0);
}
#include "no_command.h"

int main(void)
{
	scn_thread(work, (void *)1);
	scn_thread(work, (void *)2);
	scn_serve();
}
