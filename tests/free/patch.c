// job() adds one more. give() leaves a pointer into this patch where it is told to.
#include <livepatch.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

extern const void **in_heap, **in_shared, **in_hidden, **in_sparse;
extern const char *(*in_static)(void);
extern timer_t in_timer;
extern int in_epoll, in_pipe;
extern pthread_key_t in_key;
extern int __cxa_atexit(void (*function)(void *), void *argument, void *object);

static const char words[] = "a string of the patch";
static int count;
static const void *volatile taken;

static const char *callback(void)
{
	return words;
}

static void at_exit(void *argument)
{
	count += argument != NULL;
}

static void handler(int signal)
{
	count += signal;
}

static int lp_job(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static const void *lp_give(const char *where)
{
	if (!strcmp(where, "heap"))
		*in_heap = words;
	else if (!strcmp(where, "take"))
		taken = *in_heap;
	else if (!strcmp(where, "shared"))
		*in_shared = words;
	else if (!strcmp(where, "sparse"))
		*in_sparse = words;
	else if (!strcmp(where, "hidden"))
		*in_hidden = words;
	else if (!strcmp(where, "static"))
		in_static = callback;
	else if (!strcmp(where, "atexit"))
		__cxa_atexit(at_exit, NULL, NULL);
	else if (!strcmp(where, "handler"))
		signal(SIGUSR2, handler);
	else if (!strcmp(where, "key"))
		pthread_key_create(&in_key, at_exit);
	else if (!strcmp(where, "timer")) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
		event.sigev_value.sival_ptr = &count;
		timer_create(CLOCK_MONOTONIC, &event, &in_timer);
	} else if (!strcmp(where, "epoll")) {
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = &count };
		epoll_ctl(in_epoll, EPOLL_CTL_MOD, in_pipe, &event);
	} else if (!strcmp(where, "signal")) {
		union sigval value = { .sival_ptr = &count };
		sigqueue(getpid(), SIGRTMIN, value);
	}
	return words;
}

static struct klp_func funcs[] = {
	{ .old_name = "job", .new_func = lp_job },
	{ .old_name = "give", .new_func = lp_give },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
