// Indirect functions that nothing refers to: the dynamic loader has called none of their resolvers.
#include <pthread.h>
#include <stddef.h>

typedef int (*number)(void);

volatile int lib_hold, lib_entered;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int data[4];

static int two(void)
{
	return 2;
}

static number choose(void)
{
	return two;
}

static number crash(void)
{
	*(volatile int *)NULL = 1;
	return two;
}

static number hold(void)
{
	lib_entered = 1;
	while (lib_hold)
		;
	return two;
}

// Some milliseconds.
static number think(void)
{
	lib_entered++;
	for (volatile int round = 0; round < 2000000; round++)
		;
	return two;
}

static number with_lock(void)
{
	pthread_mutex_lock(&lock);
	number chosen = two;
	pthread_mutex_unlock(&lock);
	return chosen;
}

static number nothing(void)
{
	return NULL;
}

// exit_group
static number low(void)
{
	return (number)231;
}

static number not_code(void)
{
	return (number)(void *)data;
}

int chosen(void) __attribute__((ifunc("choose")));
int crashing(void) __attribute__((ifunc("crash")));
int held(void) __attribute__((ifunc("hold")));
int slow(void) __attribute__((ifunc("think")));
int locked(void) __attribute__((ifunc("with_lock")));
int none(void) __attribute__((ifunc("nothing")));
int number_of_a_call(void) __attribute__((ifunc("low")));
int variable(void) __attribute__((ifunc("not_code")));
