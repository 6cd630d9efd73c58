// A C program that has loaded the unwinder. Only one of its tasks can be in a place where it can call a function, and it
// must not notice: no call ends early or with EINTR, no register changes.
//
// Argument: what that task does (see `works`). The other one reads commands in a signal handler that interrupted the C
// library. With "unwinder", or the name of an interruption (see `interruptions`), there is only one task.
//
//# target: gcc -O2 pie
//# link: -Wl,--no-as-needed -lgcc_s
//
// Commands: "rounds" says how often the work has been done.
#include "scn.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unwind.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

enum { LONG_US = 400000 };
static atomic_int version = 41;
static atomic_long rounds;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static sem_t semaphore;
static int pipe_ends[2], epoll;

static struct timespec from_now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_REALTIME, &time);
	time.tv_nsec += LONG_US * 1000l;
	time.tv_sec += time.tv_nsec / 1000000000;
	time.tv_nsec %= 1000000000;
	return time;
}

static int do_nanosleep(void)
{
	struct timespec time = { 0, LONG_US * 1000l };
	return nanosleep(&time, &time) ? -1 : 0;
}
static int do_poll(void)
{
	struct pollfd file = { .fd = pipe_ends[0], .events = POLLIN };
	return poll(&file, 1, LONG_US / 1000);
}
static int do_select(void)
{
	struct timeval time = { 0, LONG_US };
	return select(0, NULL, NULL, NULL, &time);
}
static int do_cond(void)
{
	struct timespec until = from_now();
	pthread_mutex_lock(&mutex);
	int error = pthread_cond_timedwait(&condition, &mutex, &until);
	pthread_mutex_unlock(&mutex);
	return error == ETIMEDOUT ? 0 : -1;
}
static int do_semaphore(void)
{
	struct timespec until = from_now();
	return sem_timedwait(&semaphore, &until) && errno == ETIMEDOUT ? 0 : -1;
}
static int do_epoll(void)
{
	struct epoll_event event;
	return epoll_wait(epoll, &event, 1, LONG_US / 1000);
}
// errno is what it was, whatever is called meanwhile.
static int do_read(void)
{
	char byte;
	errno = 4711;
	return read(pipe_ends[0], &byte, 1) == 1 && errno == 4711 ? 0 : -1;
}
// All vector registers, the flags, and what lies below the stack pointer.
static int do_spin(void)
{
	static const uint64_t pattern[2] = { 0x0123456789abcdefull, 0xfedcba9876543210ull };
	int wrong;
	__asm__ volatile(
		"movups (%1), %%xmm0\n movaps %%xmm0, %%xmm1\n movaps %%xmm0, %%xmm2\n movaps %%xmm0, %%xmm7\n movaps %%xmm0, %%xmm15\n"
		"movq $0x77, -8(%%rsp)\n movq $0x78, -128(%%rsp)\n"
		"mov $300000000, %%rcx\n stc\n"
		"1: lea -1(%%rcx), %%rcx\n jrcxz 2f\n jmp 1b\n"
		"2: setnc %b0\n"
		"cmpq $0x77, -8(%%rsp)\n setne %%cl\n or %%cl, %b0\n"
		"cmpq $0x78, -128(%%rsp)\n setne %%cl\n or %%cl, %b0\n"
		"pcmpeqb %%xmm0, %%xmm1\n pcmpeqb %%xmm0, %%xmm2\n pcmpeqb %%xmm0, %%xmm7\n pcmpeqb %%xmm0, %%xmm15\n"
		"pand %%xmm2, %%xmm1\n pand %%xmm7, %%xmm1\n pand %%xmm15, %%xmm1\n"
		"movups (%1), %%xmm2\n pcmpeqb %%xmm2, %%xmm0\n pand %%xmm0, %%xmm1\n"
		"pmovmskb %%xmm1, %%ecx\n cmp $0xffff, %%ecx\n setne %%cl\n or %%cl, %b0\n"
		: "=&a"(wrong) : "r"(pattern) : "rcx", "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm7", "xmm15");
	return wrong & 0xff;
}

static const struct {
	const char *name;
	int (*work)(void);
	int timed;
} works[] = {
	{ "nanosleep", do_nanosleep, 1 }, { "poll", do_poll, 1 },   { "select", do_select, 1 },
	{ "cond", do_cond, 1 },		  { "sem", do_semaphore, 1 }, { "epoll", do_epoll, 0 },
	{ "read", do_read, 0 },		  { "spin", do_spin, 0 },
};
static int chosen;

static void *run(void *argument)
{
	for (;;) {
		uint64_t before = scn_now_us();
		int got = works[chosen].work();
		uint64_t took = scn_now_us() - before;
		if (got)
			scn_broken("%s: %d, %s", works[chosen].name, got, strerror(errno));
		if (works[chosen].timed && took < LONG_US)
			scn_broken("%s took %lu us", works[chosen].name, (long)took);
		atomic_store(&version, answer(40));
		atomic_fetch_add(&rounds, 1);
	}
	return argument;
}

// The task that reads commands has not called answer() when there is another one to call it.
static const char *scn_check(void)
{
	if (chosen >= 0) {
		long before = atomic_load(&rounds);
		while (atomic_load(&rounds) < before + 2) {
			(void)!write(pipe_ends[1], "", chosen == 6);
			scn_nap_us(1000);
		}
	} else {
		atomic_store(&version, answer(40));
	}
	int got = atomic_load(&version);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

static const char *scn_command(const char *line)
{
	static char text[32];
	snprintf(text, sizeof text, "%ld", atomic_load(&rounds));
	return strcmp(line, "rounds") ? "unknown command" : text;
}

static void handler(int signal)
{
	(void)signal;
	scn_serve();
}

// Whom a handler interrupts that never returns.
static void in_raise(void)
{
	raise(SIGUSR1);
}
static void in_select(void)
{
	struct timeval time = { 100, 0 };
	alarm(1);
	select(0, NULL, NULL, NULL, &time);
}
static void in_sigprocmask(void)
{
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	kill(getpid(), SIGUSR1);
	sigprocmask(SIG_UNBLOCK, &signals, NULL);
}
static void in_program(void)
{
	alarm(1);
	for (;;)
		BARRIER();
}
static int compare(const void *one, const void *other)
{
	in_program();
	return one < other;
}
static void in_qsort(void)
{
	int numbers[] = { 1, 2, 3 };
	qsort(numbers, 3, sizeof numbers[0], compare);
}
static void on_another_stack(void)
{
	static char room[1 << 18];
	sigaltstack(&(stack_t){ .ss_sp = room, .ss_size = sizeof room }, NULL);
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = handler, .sa_flags = SA_ONSTACK }, NULL);
	in_program();
}

static const struct {
	const char *name;
	void (*interrupted)(void);
} interruptions[] = {
	{ "raise", in_raise },	   { "select-interrupted", in_select }, { "sigprocmask", in_sigprocmask },
	{ "program", in_program }, { "qsort", in_qsort },		{ "altstack", on_another_stack },
};

static _Unwind_Reason_Code frame(struct _Unwind_Context *context, void *argument)
{
	(void)context, (void)argument;
	scn_serve();
	return _URC_NO_REASON;
}

static void *start(void *argument)
{
	raise(SIGUSR1);
	return argument;
}

int main(int count, char **arguments)
{
	const char *name = count > 1 ? arguments[1] : "read";
	(void)!pipe(pipe_ends);
	epoll = epoll_create1(0);
	sem_init(&semaphore, 0, 0);
	signal(SIGUSR1, handler);
	signal(SIGALRM, handler);
	chosen = -1;
	for (size_t i = 0; i < sizeof interruptions / sizeof interruptions[0]; i++)
		if (!strcmp(name, interruptions[i].name))
			interruptions[i].interrupted();
	if (!strcmp(name, "unwinder"))
		_Unwind_Backtrace(frame, NULL);
	for (chosen = 0; strcmp(name, works[chosen].name); chosen++)
		;
	scn_thread(start, NULL);
	run(NULL);
}
