// A task asleep inside the replaced job() of `for (;;) job();` (in essence), and workers that call another replaced function.
//
//# target: gcc,clang -O2 pie
//
// Argument: how many of the workers do nothing else.
// Commands: "wake" lets the sleeper's job() return once, and waits until it has entered the next one; "workers" says
// which version all workers run; "sleeper" says which version the sleeper is in; "spare" calls spare(), which nobody else
// does, and says which version it is. "gs" starts a task that uses %gs for itself, "gs-base" says whether it still has its
// gs base, "no-gs" ends it. "out" lets job() return once and keeps the sleeper out of the next one until "in".
#include "scn.h"
#include <asm/prctl.h>

enum { WORKERS = 6 };
static int pipe_ends[2], hot;
static atomic_int entered, left_old, left_new, kept_out;
static struct {
	atomic_ulong rounds;
	atomic_int version;
} workers[WORKERS];
// Read by job(), whichever version: the one that the sleeper is in.
atomic_int sleeper_version;

__attribute__((noinline)) void job_entered(int version)
{
	atomic_store(&sleeper_version, version);
	atomic_fetch_add(&entered, 1);
}

__attribute__((noinline)) void job_sleep(void)
{
	char byte;
	ssize_t got;
	while ((got = read(pipe_ends[0], &byte, 1)) < 0 && errno == EINTR)
		scn_broken("the sleeper's read returned EINTR");
	if (got != 1)
		scn_broken("the sleeper's read returned %zd", got);
}

__attribute__((noinline)) void job_left(int version)
{
	if (atomic_load(&sleeper_version) != version)
		scn_broken("job() entered in version %d and left in %d", sleeper_version, version);
	atomic_fetch_add(version == 1 ? &left_old : &left_new, 1);
}

// The argument is used after the calls, so that the function begins with more than a push.
PATCHABLE long job(long rounds)
{
	__asm__ volatile("" : "+b"(rounds));
	job_entered(1);
	job_sleep();
	job_left(1);
	return rounds + 1;
}

PATCHABLE int tick(int x)
{
	BARRIER();
	return x + 1;
}

PATCHABLE int spare(int x)
{
	BARRIER();
	return x + 1;
}

static void *sleeper(void *argument)
{
	for (long rounds = 0;;) {
		rounds = job(rounds);
		while (atomic_load(&kept_out))
			scn_nap_us(1000);
	}
	return argument;
}

static void *worker(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (int x = 0;; x = (x + 1) & 0xffff) {
		atomic_store(&workers[self].version, tick(x) - x);
		atomic_fetch_add(&workers[self].rounds, 1);
		if (self >= hot)
			scn_nap_us(300);
	}
	return NULL;
}

static uintptr_t block_of_its_own[16] = { 1234 };
static sem_t gs_asked, gs_answered;
static atomic_int gs_wanted, gs_kept;

static void *user_of_gs(void *argument)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, block_of_its_own))
		scn_broken("arch_prctl: %m");
	while (atomic_load(&gs_wanted)) {
		uintptr_t base = 0, word = 0;
		if (syscall(SYS_arch_prctl, ARCH_GET_GS, &base))
			scn_broken("arch_prctl: %m");
		if (base == (uintptr_t)block_of_its_own)
			__asm__ volatile("mov %%gs:0, %0" : "=r"(word));
		atomic_store(&gs_kept, word == block_of_its_own[0]);
		sem_post(&gs_answered);
		while (sem_wait(&gs_asked))
			if (errno != EINTR)
				scn_broken("sem_wait: %m");
	}
	return argument;
}

static const char *gs_command(const char *line)
{
	static pthread_t thread;
	if (!strcmp(line, "no-gs")) {
		atomic_store(&gs_wanted, 0);
		sem_post(&gs_asked);
		pthread_join(thread, NULL);
		return "ok";
	}
	if (atomic_exchange(&gs_wanted, 1))
		sem_post(&gs_asked);
	else
		thread = scn_thread(user_of_gs, NULL);
	while (sem_wait(&gs_answered))
		;
	return atomic_load(&gs_kept) ? "kept" : "lost";
}

static void *nothing(void *argument)
{
	return argument;
}

static const char *workers_say(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < WORKERS; i++) {
		unsigned long rounds = atomic_load(&workers[i].rounds);
		while (atomic_load(&workers[i].rounds) < rounds + 2)
			scn_nap_us(100);
		int version = atomic_load(&workers[i].version);
		if (version != 1 && version != 2)
			scn_broken("tick() added %d", version);
		seen[version]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}

static const char *sleeper_says(void)
{
	return atomic_load(&sleeper_version) == 1 ? "old" : "new";
}

static const char *scn_check(void)
{
	const char *workers = workers_say(), *sleeper = sleeper_says();
	return strcmp(workers, sleeper) ? "mixed" : workers;
}

static const char *scn_command(const char *line)
{
	if (!strcmp(line, "wake")) {
		int before = atomic_load(&entered);
		(void)!write(pipe_ends[1], "", 1);
		while (atomic_load(&entered) == before)
			scn_nap_us(100);
		return sleeper_says();
	}
	if (!strcmp(line, "out")) {
		int before = atomic_load(&left_old) + atomic_load(&left_new);
		atomic_store(&kept_out, 1);
		(void)!write(pipe_ends[1], "", 1);
		while (atomic_load(&left_old) + atomic_load(&left_new) == before)
			scn_nap_us(100);
		return "ok";
	}
	if (!strcmp(line, "in")) {
		int before = atomic_load(&entered);
		atomic_store(&kept_out, 0);
		while (atomic_load(&entered) == before)
			scn_nap_us(100);
		return sleeper_says();
	}
	if (!strcmp(line, "workers"))
		return workers_say();
	if (!strcmp(line, "sleeper"))
		return sleeper_says();
	if (!strcmp(line, "spare"))
		return spare(1) == 2 ? "old" : "new";
	if (strstr(line, "gs"))
		return gs_command(line);
	return "unknown command";
}

int main(int count, char **values)
{
	hot = scn_argument(count, values, 1, 2);
	(void)!pipe(pipe_ends);
	pthread_setname_np(scn_thread(sleeper, NULL), "sleeper");
	for (intptr_t i = 0; i < WORKERS; i++)
		scn_thread(worker, (void *)i);
	// The stack that it leaves behind is there for the task of "gs": no new mapping.
	pthread_join(scn_thread(nothing, NULL), NULL);
	while (!atomic_load(&entered))
		scn_nap_us(100);
	scn_serve();
}
