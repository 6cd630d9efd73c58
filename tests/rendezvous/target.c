// A function whose first five bytes are four instructions: it is redirected while all tasks stand still, none of them
// within those bytes. -DLOOP: one that loops back to its second byte, so that the whole loop has to move elsewhere.
//
//# target: gcc -O2 pie,no-pie
//# mappings: own
//
// Arguments: number of spinning tasks, number of blocked ones.
// Commands: "vfork": from now on a task waits for its vfork child, which sleeps. "interrupt": from now on a task is in a
// signal handler that has interrupted it within those bytes. "release" ends either.
#include "scn.h"
#include <signal.h>
#include <sys/wait.h>

extern int answer(int);
#ifdef LOOP
enum { MOVED = 9 };
__asm__(".text\n .p2align 4\n .globl answer\n .type answer, @function\n"
	"answer: push %rbx\n 1: add $0x40000000, %edi\n jnc 1b\n"
	" lea 1(%rdi), %eax\n pop %rbx\n ret\n .size answer, . - answer\n .p2align 4\n");
#else
enum { MOVED = 5 };
__asm__(".text\n .p2align 4\n .globl answer\n .type answer, @function\n"
	"answer: push %rbx\n push %rbp\n push %r12\n nop\n"
	" pop %r12\n pop %rbp\n pop %rbx\n lea 1(%rdi), %eax\n ret\n .size answer, . - answer\n .p2align 4\n");
#endif

static int spinning;
static struct {
	atomic_ulong rounds;
	atomic_int version;
} *threads;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static atomic_int interrupted, leave, away;

static void *spin(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (;;) {
		int sum = 0;
		for (int i = 0; i < 1000; i++)
			sum += answer(i & 7) - (i & 7);
		if (sum < 1000 || sum > 2000)
			scn_broken("the sum is %d", sum);
		atomic_store(&threads[self].version, sum == 1000 ? 1 : sum == 2000 ? 2 : 0);
		atomic_fetch_add(&threads[self].rounds, 1);
	}
	return NULL;
}

static void *block(void *argument)
{
	pthread_mutex_lock(&held);
	return argument;
}

static void *wait_for_child(void *argument)
{
	pid_t child = vfork();
	if (!child) {
		atomic_store(&interrupted, 1);
		while (!atomic_load(&leave))
			scn_nap_us(1000);
		_exit(0);
	}
	while (waitpid(child, NULL, 0) < 0)
		if (errno != EINTR)
			scn_broken("waitpid: %m");
	atomic_store(&away, 1);
	return argument;
}

static void handler(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)info;
	uintptr_t at = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	if (atomic_load(&leave) || at <= (uintptr_t)answer || at >= (uintptr_t)answer + MOVED)
		return;
	atomic_store(&interrupted, 1);
	while (!atomic_load(&leave))
		scn_nap_us(1000);
}

static void *be_interrupted(void *argument)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	sigaction(SIGUSR1, &action, NULL);
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1 };
	event._sigev_un._tid = gettid();
	struct itimerspec often = { { 0, 53000 }, { 0, 53000 } };
	timer_t timer;
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &often, NULL))
		scn_broken("timer: %m");
	while (!atomic_load(&leave))
		answer(1);
	timer_delete(timer);
	atomic_store(&away, 1);
	return argument;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < spinning; i++) {
		unsigned long rounds = atomic_load(&threads[i].rounds);
		while (atomic_load(&threads[i].rounds) < rounds + 2)
			scn_nap_us(100);
		seen[atomic_load(&threads[i].version)]++;
	}
	seen[answer(7) - 7]++;
	return seen[0] ? "mixed" : !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}

static const char *scn_command(const char *line)
{
	if (!strcmp(line, "release")) {
		atomic_store(&leave, 1);
		while (!atomic_load(&away))
			scn_nap_us(100);
		return "ok";
	}
	atomic_store(&leave, 0);
	atomic_store(&away, 0);
	atomic_store(&interrupted, 0);
	scn_thread(!strcmp(line, "vfork") ? wait_for_child : be_interrupted, NULL);
	while (!atomic_load(&interrupted))
		scn_nap_us(100);
	return "ok";
}

int main(int count, char **values)
{
	spinning = scn_argument(count, values, 1, 3);
	threads = calloc(spinning + 1, sizeof *threads);
	pthread_mutex_lock(&held);
	for (intptr_t i = 0; i < spinning; i++)
		scn_thread(spin, (void *)i);
	for (int i = scn_argument(count, values, 2, 3); i > 0; i--)
		scn_thread(block, NULL);
	scn_serve();
}
