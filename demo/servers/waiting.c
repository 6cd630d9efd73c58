/*
 * The functions of libc's in which servers sleep: each task must come out of the one that it is in before it can run the
 * new one.
 */
#define _GNU_SOURCE
#include <livepatch.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned long calls;

static int lp_epoll_wait(int fd, struct epoll_event *events, int count, int timeout)
{
	calls++;
	return syscall(SYS_epoll_wait, fd, events, count, timeout);
}

static int lp_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	calls++;
	return syscall(SYS_poll, fds, count, timeout);
}

static struct klp_func funcs[] = {
	{ .old_name = "epoll_wait", .new_func = lp_epoll_wait },
	{ .old_name = "poll", .new_func = lp_poll },
	{ }
};
static struct klp_object objs[] = { { .name = "libc.so.6", .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
