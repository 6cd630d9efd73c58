// A program under circumstances: each is asked for by name as the first argument. Everywhere three tasks call the
// function all the time.
//
//# target: gcc -O2 pie
//# mappings: own
//
// mdwe       memory that was writable may not become executable (systemd's MemoryDenyWriteExecute)
// privileges no new privileges (NoNewPrivileges)
// sealed     the program's text is sealed (mseal)
// mappings   10,000 mappings
// limit      the address space is limited (RLIMIT_AS) to 2 MiB more than what is there, or so many KiB (second argument)
// zombie     the main task has ended, others have not
// deep       a task is asleep 100 MiB deep in recursion
// altstack   a task is asleep in a handler on an alternate signal stack
// shared     children that share the memory but are processes of their own (CLONE_VM), with stacks of their own
// uring      io_uring with a worker of the kernel's (IORING_SETUP_SQPOLL)
// chroot     another root directory, in which there is nothing
// namespaces mount, network, IPC and user namespaces of its own
// lock       all memory is locked (mlockall)
// ffi        libffi is there, which looks as if it gave tasks other stacks
#include "scn.h"
#include <dlfcn.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { SPINNING = 3 };
static struct {
	atomic_ulong rounds;
	atomic_int version;
} threads[SPINNING + 2];
static int shared;
static atomic_int asleep;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static int spin(void *argument)
{
	int self = (int)(intptr_t)argument;
	// One that is a process of its own must not outlive the program.
	if (self >= SPINNING)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int x = 0;; x = (x + 1) & 0xffff) {
		int got = answer(x) - x;
		if (got != 1 && got != 2)
			scn_broken("answer(%d) is %d", x, got + x);
		atomic_store(&threads[self].version, got);
		atomic_fetch_add(&threads[self].rounds, 1);
		if (x % 256 == 0)
			syscall(SYS_sched_yield);
	}
	return 0;
}

static void *spin_thread(void *argument)
{
	spin(argument);
	return NULL;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i < SPINNING + shared; i++) {
		unsigned long rounds = atomic_load(&threads[i].rounds);
		while (atomic_load(&threads[i].rounds) < rounds + 2)
			scn_nap_us(100);
		seen[atomic_load(&threads[i].version)]++;
	}
	seen[answer(7) - 7]++;
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

static int must(long result, const char *what)
{
	if (result < 0) {
		dprintf(2, "%s: %s\n", what, strerror(errno));
		_exit(77);
	}
	return result;
}

static void sleep_for_ever(void)
{
	atomic_store(&asleep, 1);
	while (atomic_load(&asleep))
		pause();
}

__attribute__((noinline)) static int descend(long left)
{
	volatile char frame[1000];
	frame[0] = 0;
	if (left <= 0) {
		sleep_for_ever();
		return 0;
	}
	return descend(left - (long)sizeof frame) + frame[0];
}

static void *deep(void *argument)
{
	descend(100 << 20);
	return argument;
}

static void handler(int signal)
{
	(void)signal;
	sleep_for_ever();
}

static void *on_altstack(void *argument)
{
	static char area[65536];
	stack_t stack = { .ss_sp = area, .ss_size = sizeof area };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	sigaltstack(&stack, NULL);
	sigaction(SIGUSR1, &action, NULL);
	raise(SIGUSR1);
	return argument;
}

static void *serve(void *argument)
{
	scn_nap_us(20000);
	scn_serve();
	return argument;
}

static void seal_text(void)
{
	extern char __executable_start, etext;
	uintptr_t start = (uintptr_t)&__executable_start & ~4095ul, end = ((uintptr_t)&etext + 4095) & ~4095ul;
	enum { MSEAL = 462 };
	must(syscall(MSEAL, start, end - start, 0), "mseal");
}

static void limit_memory(rlim_t room)
{
	char text[256] = "";
	FILE *file = fopen("/proc/self/statm", "r");
	(void)!fgets(text, sizeof text, file);
	fclose(file);
	rlim_t bytes = atol(text) * 4096 + room;
	struct rlimit limit = { bytes, bytes };
	must(setrlimit(RLIMIT_AS, &limit), "setrlimit");
}

static void many_mappings(void)
{
	char *area = mmap(NULL, 10000l * 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (int i = 0; i < 5000; i++)
		must(mprotect(area + i * 16384l, 8192, PROT_NONE), "mprotect");
}

static void kernel_worker(void)
{
	struct io_uring_params parameters = { .flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 100000 };
	must(syscall(SYS_io_uring_setup, 4, &parameters), "io_uring_setup");
}

int main(int count, char **values)
{
	const char *what = count > 1 ? values[1] : "";
	for (intptr_t i = 0; i < SPINNING; i++)
		scn_thread(spin_thread, (void *)i);
	if (!strcmp(what, "mdwe")) {
		must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0), "PR_SET_MDWE");
	} else if (!strcmp(what, "privileges")) {
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	} else if (!strcmp(what, "sealed")) {
		seal_text();
	} else if (!strcmp(what, "mappings")) {
		many_mappings();
	} else if (!strcmp(what, "limit")) {
		limit_memory(scn_argument(count, values, 2, 2048) * 1024l);
	} else if (!strcmp(what, "zombie")) {
		scn_thread(serve, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(what, "deep")) {
		pthread_attr_t large;
		pthread_t thread;
		pthread_attr_init(&large);
		pthread_attr_setstacksize(&large, 128 << 20);
		must(-pthread_create(&thread, &large, deep, NULL), "pthread_create");
	} else if (!strcmp(what, "altstack")) {
		scn_thread(on_altstack, NULL);
	} else if (!strcmp(what, "shared")) {
		static char stacks[2][65536] __attribute__((aligned(64)));
		for (shared = 0; shared < 2; shared++)
			must(clone(spin, stacks[shared] + 65536, CLONE_VM | CLONE_FILES | SIGCHLD,
				   (void *)(intptr_t)(SPINNING + shared)),
			     "clone");
	} else if (!strcmp(what, "uring")) {
		kernel_worker();
	} else if (!strcmp(what, "chroot")) {
		char path[] = "/tmp/livegraft-XXXXXX";
		must(mkdtemp(path) ? 0 : -1, "mkdtemp");
		must(chdir(path), "chdir");
		must(rmdir(path), "rmdir");
		must(chroot("."), "chroot");
	} else if (!strcmp(what, "namespaces")) {
		must(unshare(CLONE_FS | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC), "unshare");
	} else if (!strcmp(what, "ffi")) {
		must(dlopen("libffi.so.8", RTLD_NOW) ? 0 : -1, "libffi.so.8");
	} else if (!strcmp(what, "lock")) {
		must(mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall");
	}
	while ((!strcmp(what, "deep") || !strcmp(what, "altstack")) && !atomic_load(&asleep))
		scn_nap_us(100);
	scn_serve();
}
