// The calls. Each returns NULL, or what was wrong with its result.
#include "uring.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

enum { WAIT_MS = 60, WAIT_US = WAIT_MS * 1000 };
static const struct timespec wait_time = { 0, WAIT_US * 1000l };

static int epoll_fd, silent[2], full[2], listener, full_listener, chatty[2], message_queue, semaphores, lock_fd[2];
static struct sockaddr_un full_address;
static aio_context_t aio;
static int plain_word;
static _Atomic int woken_word;

static const char *timed_out(long result, int expected_error)
{
	if (result == -1 && errno == expected_error)
		return NULL;
	return result == -1 ? "wrong error" : "returned something";
}

static const char *gave(long result, long expected)
{
	return result == expected ? NULL : "wrong result";
}

static const char *call_epoll_wait(void)
{
	struct epoll_event event;
	return gave(epoll_wait(epoll_fd, &event, 1, WAIT_MS), 0);
}
static const char *call_epoll_pwait(void)
{
	struct epoll_event event;
	sigset_t set;
	sigemptyset(&set);
	return gave(epoll_pwait(epoll_fd, &event, 1, WAIT_MS, &set), 0);
}
static int prepare_epoll_pwait2(void)
{
	return syscall(SYS_epoll_pwait2, -1, NULL, 0, NULL, NULL, 8) == 0 || errno != ENOSYS;
}
static const char *call_epoll_pwait2(void)
{
	struct epoll_event event;
	return gave(syscall(SYS_epoll_pwait2, epoll_fd, &event, 1, &wait_time, NULL, 8), 0);
}
static const char *call_epoll_wait_for_ever(void)
{
	struct epoll_event event;
	return gave(epoll_wait(epoll_fd, &event, 1, -1), 0) ? "returned" : "returned 0";
}
static const char *call_read_timeout(void)
{
	char byte;
	return timed_out(read(silent[0], &byte, 1), EAGAIN);
}
static const char *call_recv(void)
{
	char byte;
	return timed_out(recv(silent[0], &byte, 1, 0), EAGAIN);
}
static const char *call_recvmsg(void)
{
	char byte;
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };
	return timed_out(recvmsg(silent[0], &message, 0), EAGAIN);
}
static const char *call_recvmmsg(void)
{
	char byte;
	struct iovec vector = { &byte, 1 };
	struct mmsghdr message = { .msg_hdr = { .msg_iov = &vector, .msg_iovlen = 1 } };
	return timed_out(recvmmsg(silent[0], &message, 1, 0, NULL), EAGAIN);
}
static const char *call_accept(void)
{
	return timed_out(accept(listener, NULL, NULL), EAGAIN);
}
static const char *call_accept4(void)
{
	return timed_out(accept4(listener, NULL, NULL, SOCK_CLOEXEC), EAGAIN);
}
static const char *call_send(void)
{
	return timed_out(send(full[0], "x", 1, MSG_NOSIGNAL), EAGAIN);
}
static const char *call_sendmsg(void)
{
	struct iovec vector = { "x", 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };
	return timed_out(sendmsg(full[0], &message, MSG_NOSIGNAL), EAGAIN);
}
static const char *call_sendmmsg(void)
{
	struct iovec vector = { "x", 1 };
	struct mmsghdr message = { .msg_hdr = { .msg_iov = &vector, .msg_iovlen = 1 } };
	return timed_out(sendmmsg(full[0], &message, 1, MSG_NOSIGNAL), EAGAIN);
}
static const char *call_write_timeout(void)
{
	return timed_out(write(full[0], "x", 1), EAGAIN);
}
static const char *call_connect(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct timeval time = { 0, WAIT_US };
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
	const char *wrong =
		timed_out(connect(fd, (void *)&full_address, sizeof(sa_family_t) + 1 + strlen(full_address.sun_path + 1)), EAGAIN);
	int saved = errno;
	close(fd);
	errno = saved;
	return wrong;
}
static const char *call_sigtimedwait(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return timed_out(sigtimedwait(&set, NULL, &wait_time), EAGAIN);
}
static const char *call_semtimedop(void)
{
	struct sembuf take = { 0, -1, 0 };
	return timed_out(semtimedop(semaphores, &take, 1, &wait_time), EAGAIN);
}
static const char *call_semop(void)
{
	struct sembuf take = { 1, -1, 0 };
	return gave(semop(semaphores, &take, 1), 0);
}
static int prepare_aio(void)
{
	return syscall(SYS_io_setup, 4, &aio) == 0;
}
static const char *call_io_getevents(void)
{
	struct io_event event;
	struct timespec time = wait_time;
	return gave(syscall(SYS_io_getevents, aio, 1, 1, &event, &time), 0);
}
static const char *call_nanosleep(void)
{
	return gave(nanosleep(&wait_time, NULL), 0);
}
static const char *call_clock_nanosleep(void)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += WAIT_US * 1000l;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return gave(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL), 0);
}
static const char *call_poll(void)
{
	struct pollfd fd = { silent[0], POLLIN, 0 };
	return gave(poll(&fd, 1, WAIT_MS), 0);
}
static const char *call_ppoll(void)
{
	struct pollfd fd = { silent[0], POLLIN, 0 };
	return gave(ppoll(&fd, 1, &wait_time, NULL), 0);
}
static const char *call_select(void)
{
	fd_set set;
	FD_ZERO(&set);
	FD_SET(silent[0], &set);
	struct timeval time = { 0, WAIT_US };
	return gave(select(silent[0] + 1, &set, NULL, NULL, &time), 0);
}
static const char *call_futex(void)
{
	return timed_out(syscall(SYS_futex, &plain_word, FUTEX_WAIT_PRIVATE, 0, &wait_time, NULL, 0), ETIMEDOUT);
}
static const char *call_futex_for_ever(void)
{
	int before = atomic_load(&woken_word);
	long got = syscall(SYS_futex, &woken_word, FUTEX_WAIT_PRIVATE, before, NULL, NULL, 0);
	return got == 0 || errno == EAGAIN ? NULL : "wrong result";
}
static const char *call_read(void)
{
	char byte;
	return gave(read(chatty[0], &byte, 1), 1);
}
static const char *call_pause(void)
{
	pause();
	return "returned";
}
static const char *call_sigsuspend(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigsuspend(&set);
	return "returned";
}
static const char *call_msgrcv(void)
{
	struct {
		long type;
		char text[8];
	} message;
	return gave(msgrcv(message_queue, &message, sizeof message.text, 0, 0), 1);
}
static const char *call_mq_timedreceive(void)
{
	static mqd_t queue = -1;
	char text[16];
	if (queue == (mqd_t)-1) {
		struct mq_attr attributes = { .mq_maxmsg = 1, .mq_msgsize = sizeof text };
		char name[64];
		snprintf(name, sizeof name, "/livegraft-%d", getpid());
		queue = mq_open(name, O_RDWR | O_CREAT, 0600, &attributes);
		mq_unlink(name);
	}
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 1;
	return timed_out(mq_timedreceive(queue, text, sizeof text, NULL, &until), ETIMEDOUT);
}
static int prepare_mq(void)
{
	mqd_t queue = mq_open("/livegraft-probe", O_RDWR | O_CREAT, 0600, NULL);
	if (queue == (mqd_t)-1)
		return 0;
	mq_unlink("/livegraft-probe");
	mq_close(queue);
	return 1;
}
static const char *call_signalfd(void)
{
	static int fd = -1;
	struct signalfd_siginfo info;
	if (fd < 0) {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		fd = signalfd(-1, &set, 0);
	}
	(void)!read(fd, &info, sizeof info);
	return "returned";
}
static const char *call_flock(void)
{
	flock(lock_fd[1], LOCK_EX);
	return "returned";
}
static const char *call_setlkw(void)
{
	struct flock lock = { .l_type = F_WRLCK };
	(void)fcntl(lock_fd[1], F_OFD_SETLKW, &lock);
	return "returned";
}

static const struct {
	const char *name;
	const char *(*call)(void);
	unsigned at_least_us;
	int for_ever;
	int (*prepare)(void);
} calls[] = {
	{ "epoll_wait", call_epoll_wait, WAIT_US - 1000, 0, NULL },
	{ "epoll_pwait", call_epoll_pwait, WAIT_US - 1000, 0, NULL },
	{ "epoll_pwait2", call_epoll_pwait2, WAIT_US, 0, prepare_epoll_pwait2 },
	{ "epoll_wait without timeout", call_epoll_wait_for_ever, 0, 1, NULL },
	{ "read with SO_RCVTIMEO", call_read_timeout, WAIT_US - 8000, 0, NULL },
	{ "recv with SO_RCVTIMEO", call_recv, WAIT_US - 8000, 0, NULL },
	{ "recvmsg with SO_RCVTIMEO", call_recvmsg, WAIT_US - 8000, 0, NULL },
	{ "recvmmsg with SO_RCVTIMEO", call_recvmmsg, WAIT_US - 8000, 0, NULL },
	{ "accept with SO_RCVTIMEO", call_accept, WAIT_US - 8000, 0, NULL },
	{ "accept4 with SO_RCVTIMEO", call_accept4, WAIT_US - 8000, 0, NULL },
	{ "send with SO_SNDTIMEO", call_send, WAIT_US - 8000, 0, NULL },
	{ "sendmsg with SO_SNDTIMEO", call_sendmsg, WAIT_US - 8000, 0, NULL },
	{ "sendmmsg with SO_SNDTIMEO", call_sendmmsg, WAIT_US - 8000, 0, NULL },
	{ "write with SO_SNDTIMEO", call_write_timeout, WAIT_US - 8000, 0, NULL },
	{ "connect with SO_SNDTIMEO", call_connect, WAIT_US - 8000, 0, NULL },
	{ "rt_sigtimedwait", call_sigtimedwait, WAIT_US, 0, NULL },
	{ "semtimedop", call_semtimedop, WAIT_US - 8000, 0, NULL },
	{ "semop", call_semop, 0, 0, NULL },
	{ "io_getevents", call_io_getevents, WAIT_US, 0, prepare_aio },
	{ "io_uring_enter", call_io_uring, WAIT_US, 0, prepare_io_uring },
	{ "nanosleep", call_nanosleep, WAIT_US, 0, NULL },
	{ "clock_nanosleep", call_clock_nanosleep, WAIT_US, 0, NULL },
	{ "poll", call_poll, WAIT_US - 1000, 0, NULL },
	{ "ppoll", call_ppoll, WAIT_US, 0, NULL },
	{ "select", call_select, WAIT_US, 0, NULL },
	{ "futex with timeout", call_futex, WAIT_US, 0, NULL },
	{ "futex", call_futex_for_ever, 0, 0, NULL },
	{ "read", call_read, 0, 0, NULL },
	{ "pause", call_pause, 0, 1, NULL },
	{ "sigsuspend", call_sigsuspend, 0, 1, NULL },
	{ "msgrcv", call_msgrcv, 0, 0, NULL },
	{ "mq_timedreceive", call_mq_timedreceive, WAIT_US, 0, prepare_mq },
	{ "signalfd", call_signalfd, 0, 1, NULL },
	{ "flock", call_flock, 0, 1, NULL },
	{ "fcntl(F_OFD_SETLKW)", call_setlkw, 0, 1, NULL },
};
enum { CALLS = sizeof calls / sizeof *calls };

// Wakes the calls that have no timeout of their own.
static void *helper(void *argument)
{
	struct {
		long type;
		char text[8];
	} message = { 1, "x" };
	for (;;) {
		struct sembuf give = { 1, 1, 0 };
		semop(semaphores, &give, 1);
		(void)!write(chatty[1], "x", 1);
		msgsnd(message_queue, &message, 1, IPC_NOWAIT);
		atomic_fetch_add(&woken_word, 1);
		syscall(SYS_futex, &woken_word, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0);
		scn_nap_us(WAIT_US);
	}
	return argument;
}

static void set_timeout(int fd, int option)
{
	struct timeval time = { 0, WAIT_US };
	setsockopt(fd, SOL_SOCKET, option, &time, sizeof time);
}

static void remove_ipc(void)
{
	msgctl(message_queue, IPC_RMID, NULL);
	semctl(semaphores, 0, IPC_RMID);
}

static void prepare_helpers(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	epoll_fd = epoll_create1(0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, silent);
	set_timeout(silent[0], SO_RCVTIMEO);
	socketpair(AF_UNIX, SOCK_STREAM, 0, full);
	char filler[4096] = { 0 };
	while (send(full[0], filler, sizeof filler, MSG_DONTWAIT) > 0)
		;
	while (send(full[0], filler, 1, MSG_DONTWAIT) > 0)
		;
	set_timeout(full[0], SO_SNDTIMEO);
	// Abstract addresses: nothing to clean up.
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int length = snprintf(address.sun_path + 1, 64, "livegraft-silent-%d", getpid());
	bind(listener, (void *)&address, sizeof(sa_family_t) + 1 + length);
	listen(listener, 4);
	set_timeout(listener, SO_RCVTIMEO);
	full_listener = socket(AF_UNIX, SOCK_STREAM, 0);
	full_address.sun_family = AF_UNIX;
	length = snprintf(full_address.sun_path + 1, 64, "livegraft-full-%d", getpid());
	bind(full_listener, (void *)&full_address, sizeof(sa_family_t) + 1 + length);
	listen(full_listener, 0);
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (connect(fd, (void *)&full_address, sizeof(sa_family_t) + 1 + length))
			break;
	}
	(void)!pipe(chatty);
	message_queue = msgget(IPC_PRIVATE, 0600);
	semaphores = semget(IPC_PRIVATE, 2, 0600);
	char name[] = "/tmp/livegraft-lock-XXXXXX";
	lock_fd[0] = mkstemp(name);
	lock_fd[1] = open(name, O_RDWR);
	unlink(name);
	flock(lock_fd[0], LOCK_EX);
	struct flock lock = { .l_type = F_WRLCK };
	(void)fcntl(lock_fd[0], F_OFD_SETLK, &lock);
	atexit(remove_ipc);
	scn_cleanup = remove_ipc;
}
