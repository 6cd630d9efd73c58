// A word that equals a return address into old code lies in a frame where nothing returns by it, and stays there. A task
// that is asleep in old code further in moves by itself when it has left that, with no controller alive, if it can be told
// that this word stays dead. Half of the programs only look as if it did: there the word becomes a return address.
//
//# target: gcc,clang -O0,-O2 pie
//# source: funcs.S
//# mappings: own
//
// Arguments: the program (see main), and whether it is the main task's.
// Commands: "wake" lets the task leave job(), and says in which version its next calls arrive; "holder" says what a busy one
// saw last.
#include "scn.h"

enum { STAYS, BUSY, BY_POINTER, WITH_ALLOCA, WITH_ARGUMENTS, BY_TAIL, OTHER_THREAD };
static int program, pipe_ends[2];
static atomic_int entered, result, gone, seen;
static atomic_ulong rounds;

int count(long *), by_pointer(void), with_alloca(void), with_arguments(void), by_tail(void);
void *first(void *), *runner(void *);
extern char after_step[] __attribute__((visibility("hidden")));

__attribute__((noinline, used)) void wait_for_byte(void)
{
	char byte;
	while (read(pipe_ends[0], &byte, 1) < 0)
		scn_broken("read: %m");
}

PATCHABLE void job(void)
{
	atomic_store(&entered, 1);
	wait_for_byte();
	BARRIER();
}

static int counted(int value)
{
	if (value != 11 && value != 22)
		scn_broken("count is %d: two versions", value);
	return value;
}

static void *make_other(void *argument)
{
	pthread_t other;
	void *value;
	while (!atomic_load(&gone))
		scn_nap_us(100);
	pthread_create(&other, NULL, runner, NULL);
	pthread_join(other, &value);
	atomic_store(&result, (int)(intptr_t)value);
	return argument;
}

// It has the table of the task that creates it.
void and_then(void)
{
	pthread_detach(scn_thread(make_other, NULL));
}

__attribute__((noinline)) static void hold(void)
{
	__attribute__((unused)) volatile uintptr_t words[4] = { 0, 0, (uintptr_t)after_step, 0 };
	for (;;) {
		if (program == STAYS)
			job();
		else
			atomic_store(&seen, counted(count(&(long){ 0 })));
		atomic_fetch_add(&rounds, 1);
	}
}

static void *run(void *argument)
{
	int value = 0;
	if (program == STAYS || program == BUSY)
		hold();
	else if (program == BY_POINTER)
		value = by_pointer();
	else if (program == WITH_ALLOCA)
		value = with_alloca();
	else if (program == WITH_ARGUMENTS)
		value = with_arguments();
	else
		value = by_tail();
	atomic_store(&result, value);
	for (;;)
		scn_nap_us(10000);
	return argument;
}

static const char *scn_check(void)
{
	for (unsigned long before = atomic_load(&rounds); program == BUSY && atomic_load(&rounds) < before + 2;)
		scn_nap_us(100);
	return counted(count(&(long){ 0 })) == 11 ? "old" : "new";
}

static const char *scn_command(const char *line)
{
	unsigned long before = atomic_load(&rounds);
	if (!strcmp(line, "holder")) {
		while (atomic_load(&rounds) < before + 2)
			scn_nap_us(100);
		return atomic_load(&seen) == 11 ? "old" : "new";
	}
	atomic_store(&entered, 0);
	(void)!write(pipe_ends[1], "", 1);
	if (program == STAYS) {
		while (atomic_load(&rounds) == before || !atomic_load(&entered))
			scn_nap_us(100);
		return atomic_load(&entered) == 1 ? "old" : "new";
	}
	while (!atomic_load(&result))
		scn_nap_us(100);
	return counted(atomic_load(&result)) == 11 ? "old" : "new";
}

static void *serve_when_held(void *thread)
{
	if (program != BUSY)
		while (!atomic_load(&entered))
			scn_nap_us(100);
	scn_serve();
	return thread;
}

static void *join(void *thread)
{
	pthread_join((pthread_t)thread, NULL);
	atomic_store(&gone, 1);
	return NULL;
}

int main(int count, char **values)
{
	program = scn_argument(count, values, 1, STAYS);
	(void)!pipe(pipe_ends);
	if (scn_argument(count, values, 2, 0)) {
		scn_thread(serve_when_held, NULL);
		run(NULL);
	}
	pthread_t thread = scn_thread(program == OTHER_THREAD ? first : run, NULL);
	pthread_setname_np(thread, "holder");
	scn_thread(join, (void *)thread);
	serve_when_held(NULL);
}
