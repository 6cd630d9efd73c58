/*
 * Functions of libc's that servers call for each request, as plain system calls. (What they lose is being points of
 * cancellation.)
 */
#define _GNU_SOURCE
#include <livepatch.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static unsigned long calls;

static ssize_t lp_recv(int fd, void *into, size_t size, int flags)
{
	calls++;
	return syscall(SYS_recvfrom, fd, into, size, flags, NULL, NULL);
}

static ssize_t lp_send(int fd, const void *from, size_t size, int flags)
{
	calls++;
	return syscall(SYS_sendto, fd, from, size, flags, NULL, 0);
}

static ssize_t lp_recvmsg(int fd, struct msghdr *message, int flags)
{
	calls++;
	return syscall(SYS_recvmsg, fd, message, flags);
}

static ssize_t lp_sendmsg(int fd, const struct msghdr *message, int flags)
{
	calls++;
	return syscall(SYS_sendmsg, fd, message, flags);
}

static ssize_t lp_writev(int fd, const struct iovec *parts, int count)
{
	calls++;
	return syscall(SYS_writev, fd, parts, count);
}

static ssize_t lp_pread64(int fd, void *into, size_t size, off_t at)
{
	calls++;
	return syscall(SYS_pread64, fd, into, size, at);
}

static struct klp_func funcs[] = {
	{ .old_name = "recv", .new_func = lp_recv },
	{ .old_name = "send", .new_func = lp_send },
	{ .old_name = "recvmsg", .new_func = lp_recvmsg },
	{ .old_name = "sendmsg", .new_func = lp_sendmsg },
	{ .old_name = "writev", .new_func = lp_writev },
	{ .old_name = "pread64", .new_func = lp_pread64 },
	{ }
};
static struct klp_object objs[] = { { .name = "libc.so.6", .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
