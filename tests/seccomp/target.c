// A filter kills the process when a task under it maps or unmaps memory. The task that sleeps best is under it.
//
//# target: gcc -O2 pie
//
// Argument: "one" (that task only) or "all".
#include "answer.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static sem_t never;
static atomic_int sleeping, spinning;
static int all;

static void filter(unsigned flags)
{
#define KILL_FOR(number)                                                                                                \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		KILL_FOR(SYS_mmap),
		KILL_FOR(SYS_mremap),
		KILL_FOR(SYS_munmap),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program))
		scn_broken("seccomp: %m");
}

static void *sleeper(void *argument)
{
	if (!all)
		filter(0);
	atomic_store(&sleeping, gettid());
	for (;;)
		sem_wait(&never);
	return argument;
}

static void *spin(void *argument)
{
	atomic_store(&spinning, 1);
	for (;;)
		BARRIER();
	return argument;
}

int main(int count, char **values)
{
	all = count > 1 && !strcmp(values[1], "all");
	scn_thread(sleeper, NULL);
	scn_thread(spin, NULL);
	while (!atomic_load(&sleeping) || !atomic_load(&spinning))
		scn_nap_us(100);
	scn_wait_until_in(SYS_futex, atomic_load(&sleeping));
	if (all)
		filter(SECCOMP_FILTER_FLAG_TSYNC);
	scn_serve();
}
