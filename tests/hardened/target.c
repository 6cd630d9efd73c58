// A service as it is confined by its manager: everything at once, or (first argument) some of it.
//
//# target: gcc -O2 pie
//# mappings: own
//
// all    the first process of user, process, mount, network, IPC and UTS namespaces of its own, in an empty root
//        directory, without new privileges or executable memory that was writable, undumpable, its capabilities
//        dropped; a filter kills it for mapping, unmapping, protecting, opening, tracing
// init   the first process of a process namespace, and nothing else
// user   a user namespace in which it is somebody else, and nothing else
// filter the filter alone
//
// The process to patch is the program's only child.
#include "scn.h"
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { SPINNING = 2 };
static atomic_ulong rounds[SPINNING + 1];
static atomic_int versions[SPINNING + 1];
static sem_t never;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static void *spin(void *argument)
{
	int self = (int)(intptr_t)argument;
	for (int x = 0;; x = (x + 1) & 0xffff) {
		int got = answer(x) - x;
		if (got != 1 && got != 2)
			scn_broken("answer(%d) is %d", x, got + x);
		atomic_store(&versions[self], got);
		atomic_fetch_add(&rounds[self], 1);
		if (self == SPINNING)
			scn_nap_us(1000);
		else if (x % 256 == 0)
			syscall(SYS_sched_yield);
	}
	return argument;
}

static void *sleeper(void *argument)
{
	while (sem_wait(&never))
		;
	return argument;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	for (int i = 0; i <= SPINNING; i++) {
		unsigned long before = atomic_load(&rounds[i]);
		while (atomic_load(&rounds[i]) < before + 2)
			scn_nap_us(100);
		seen[atomic_load(&versions[i])]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}
#include "no_command.h"

static void must(long result, const char *what)
{
	if (result < 0) {
		dprintf(2, "%s: %s\n", what, strerror(errno));
		_exit(77);
	}
}

static void put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	must(file, path);
	must(write(file, text, strlen(text)), path);
	close(file);
}

static void map_identity(void)
{
	put("/proc/self/setgroups", "deny");
	put("/proc/self/uid_map", "1000 0 1");
	put("/proc/self/gid_map", "1000 0 1");
}

static void filter(void)
{
#define KILL_FOR(number)                                                                                                \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		KILL_FOR(SYS_mmap),
		KILL_FOR(SYS_mremap),
		KILL_FOR(SYS_munmap),
		KILL_FOR(SYS_mprotect),
		KILL_FOR(SYS_memfd_create),
		KILL_FOR(SYS_open),
		KILL_FOR(SYS_openat),
		KILL_FOR(SYS_ftruncate),
		KILL_FOR(SYS_ptrace),
		KILL_FOR(SYS_getpid),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program), "seccomp");
}

static void confine(const char *root)
{
	must(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "unshare");
	must(sethostname("confined", 8), "sethostname");
	must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount");
	must(mount("none", root, "tmpfs", MS_RDONLY, NULL), "tmpfs");
	must(chroot(root), "chroot");
	must(chdir("/"), "chdir");
	must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0), "PR_SET_MDWE");
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE");
	must(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0), "PR_SET_KEEPCAPS");
	for (int capability = 0; prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0; capability++)
		;
}

static int child(const char *what, const char *root)
{
	int all = !strcmp(what, "all");
	if (all)
		confine(root);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (intptr_t i = 0; i <= SPINNING; i++)
		scn_thread(spin, (void *)i);
	scn_thread(sleeper, NULL);
	if (all || !strcmp(what, "filter"))
		filter();
	scn_serve();
	return 0;
}

int main(int count, char **values)
{
	const char *what = count > 1 ? values[1] : "";
	char root[] = "/tmp/livegraft-XXXXXX";
	must(mkdtemp(root) ? 0 : -1, "mkdtemp");
	int all = !strcmp(what, "all");
	if (all || !strcmp(what, "user")) {
		must(unshare(CLONE_NEWUSER), "unshare user");
		map_identity();
	}
	if (all || !strcmp(what, "init"))
		must(unshare(CLONE_NEWPID), "unshare processes");
	pid_t pid = fork();
	must(pid, "fork");
	if (!pid)
		return child(what, root);
	int status;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	rmdir(root);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
