// Three tasks that each say, by backtrace(), who called them, and then sleep there: the main thread, a thread, and a
// thread in a signal handler that runs on a stack of its own.
#define _GNU_SOURCE
#include <execinfo.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __clang__
#define noipa noinline
#endif

static sem_t said;

__attribute__((noipa)) static void sleep_here(const char *who)
{
	void *callers[64];
	char line[2048];
	int count = backtrace(callers, 64);
	int length = snprintf(line, sizeof line, "%s %ld", who, syscall(SYS_gettid));
	for (int i = 0; i < count; i++)
		length += snprintf(line + length, sizeof line - length, " %p", callers[i]);
	line[length++] = '\n';
	(void)!write(1, line, length);
	sem_post(&said);
	char byte;
	while (read(0, &byte, 1) > 0)
		;
	_exit(0);
}

// Frames of different kinds: a variable one needs a frame pointer, a large one needs none.
__attribute__((noipa)) static void variable(const char *who, int size)
{
	volatile char *room = __builtin_alloca(size);
	room[0] = 1;
	sleep_here(who);
	room[size - 1] = 1;
}

__attribute__((noipa)) static void large(const char *who)
{
	volatile char room[10000];
	room[0] = 1;
	variable(who, 100 + getpid() % 100);
	room[sizeof room - 1] = 1;
}

static void handler(int number)
{
	(void)number;
	large("handler");
	__asm__ volatile("" ::: "memory");
}

__attribute__((noipa)) static void interrupted(void)
{
	raise(SIGUSR1);
	__asm__ volatile("" ::: "memory");
}

static void *thread(void *argument)
{
	if (!argument) {
		large("thread");
		__asm__ volatile("" ::: "memory");
		return argument;
	}
	stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
	sigaltstack(&stack, NULL);
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	sigaction(SIGUSR1, &action, NULL);
	interrupted();
	return argument;
}

int main(void)
{
	pthread_t threads[2];
	sem_init(&said, 0, 0);
	for (long i = 0; i < 2; i++) {
		pthread_create(&threads[i], NULL, thread, (void *)i);
		sem_wait(&said);
	}
	large("main");
	return 0;
}
