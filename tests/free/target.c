// A patch leaves pointers into its memory in all kinds of places, before it is unloaded; what they lead to is used
// afterwards.
//
//# target: gcc -O2 pie,no-pie,static
//# mappings: own
//
// Arguments: how many MiB of memory it has besides.
//
// Commands: "leave WHERE" has give(), which the patch replaces, leave a pointer there; "use WHERE" uses it; "drop WHERE"
// removes it.
#include "scn.h"
#include <linux/aio_abi.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { WORKERS = 3 };
static int pipe_ends[2];
static atomic_int held;
static sem_t hold;
// Where the patch may leave something.
const void **in_heap, **in_shared, **in_hidden, **in_sparse;
const char *(*in_static)(void);
struct sigaction in_handler;
timer_t in_timer;
int in_epoll, in_pipe;
pthread_key_t in_key;
static pthread_t in_vfork;
static aio_context_t in_aio;

// What the patch calls, for a static program to have it.
extern int __cxa_atexit(void (*function)(void *), void *argument, void *object);
void *const used_by_patch[] = { __cxa_atexit, __libc_current_sigrtmin, epoll_ctl, getpid, pthread_key_create, signal,
				sigqueue, strcmp, timer_create };

PATCHABLE int job(int x)
{
	BARRIER();
	return x + 1;
}

// Leaves nothing, and has nothing.
PATCHABLE const void *give(const char *where)
{
	BARRIER();
	return where ? NULL : where;
}

static const void *got(void)
{
	const void *pointer = give("register");
	BARRIER();
	return pointer;
}

// Sleeps with the pointer in a register, and nowhere else.
static void *holder(void *argument)
{
	for (;;) {
		while (sem_wait(&hold))
			;
		char byte;
		long result;
		register const void *pointer __asm__("r12") = got();
		// "Held" is said right before the call.
		atomic_store(&held, gettid());
		__asm__ volatile("syscall\n\txor %%r12d,%%r12d"
				 : "=a"(result), "+r"(pointer)
				 : "a"(SYS_read), "D"(pipe_ends[0]), "S"(&byte), "d"(1)
				 : "rcx", "r11", "memory");
		while (sem_wait(&hold))
			;
		const void *vector = got();
		atomic_store(&held, gettid());
		__asm__ volatile("movq %[pointer],%%xmm9\n\txor %k[pointer],%k[pointer]\n\tmov %[number],%%eax\n\t"
				 "syscall\n\tpxor %%xmm9,%%xmm9"
				 : "=&a"(result), [pointer] "+&r"(vector)
				 : [number] "i"(SYS_read), "D"(pipe_ends[0]), "S"(&byte), "d"(1)
				 : "rcx", "r11", "memory", "xmm9");
		atomic_store(&held, 0);
	}
	return argument;
}

// Two places with much memory between them, one of which has the pointer at any time, or the mover's register has it.
enum { APART = 8 << 20 };
static const void **ends[2];
static atomic_int moves;

static void *mover(void *argument)
{
	for (int from = 0;;) {
		if (atomic_load(&moves)) {
			__asm__ volatile("mov (%0),%%rax\n\tmov %%rax,(%1)\n\tmovq $0,(%0)\n\txor %%eax,%%eax"
					 :
					 : "r"(ends[from]), "r"(ends[!from])
					 : "rax", "memory");
			from = !from;
		}
		scn_nap_us(200);
	}
	return argument;
}

static const char *start_moving(void)
{
	ends[0] = malloc(APART);
	memset(ends[0], 1, APART);
	ends[1] = ends[0] + APART / sizeof *ends[0] - 1;
	*ends[0] = give("mover");
	*ends[1] = NULL;
	atomic_store(&moves, 1);
	return "ok";
}

static const char *stop_moving(void)
{
	const void *seen = NULL;
	// It may be moving it now.
	atomic_store(&moves, 0);
	scn_nap_us(50000);
	for (int end = 0; end < 2; end++) {
		if (*ends[end])
			seen = *ends[end];
		*ends[end] = NULL;
	}
	return seen ? seen : "lost";
}

// A process that runs in this memory, with the pointer in a register.
static pid_t sharer_pid;
static char sharer_stack[65536] __attribute__((aligned(16)));

static int sharer(void *unused)
{
	char byte;
	long result;
	register const void *pointer __asm__("r12") = got();
	__asm__ volatile("syscall\n\txor %%r12d,%%r12d"
			 : "=a"(result), "+r"(pointer)
			 : "a"(SYS_read), "D"(pipe_ends[0]), "S"(&byte), "d"(1)
			 : "rcx", "r11", "memory");
	return unused != NULL;
}

static const char *start_sharer(void)
{
	sharer_pid = clone(sharer, sharer_stack + sizeof sharer_stack, CLONE_VM | SIGCHLD, NULL);
	if (sharer_pid < 0)
		scn_broken("clone: %m");
	char path[64], text[64] = "";
	snprintf(path, sizeof path, "/proc/%d/syscall", sharer_pid);
	while (atol(text) != SYS_read || *text != '0') {
		FILE *file = fopen(path, "r");
		if (file) {
			(void)!fgets(text, sizeof text, file);
			fclose(file);
		}
		scn_nap_us(100);
	}
	return "ok";
}

static void end_sharer(void)
{
	(void)!write(pipe_ends[1], "", 1);
	waitpid(sharer_pid, NULL, 0);
	memset(sharer_stack, 0, sizeof sharer_stack);
}

// Stands still in the kernel until its child, which runs in its memory, has ended.
static void *forker(void *argument)
{
	char byte;
	if (!vfork()) {
		(void)!read(pipe_ends[0], &byte, 1);
		_exit(0);
	}
	return argument;
}

static pthread_t start_forker(void)
{
	pthread_t thread = scn_thread(forker, NULL);
	// It does not say when it is there.
	scn_nap_us(100000);
	return thread;
}

static void *worker(void *argument)
{
	for (int x = 0;; x = (x + 1) & 0xffff) {
		if (job(x) - x != 1 && job(x) - x != 2)
			scn_broken("job() added %d", job(x) - x);
		scn_nap_us(300);
	}
	return argument;
}

static const char *scn_check(void)
{
	int x = job(40);
	return x == 41 ? "old" : x == 42 ? "new" : "mixed";
}

static void *thread_with_key(void *argument)
{
	pthread_setspecific(in_key, argument);
	return argument;
}

static const char *hold_one(void)
{
	atomic_store(&held, 0);
	sem_post(&hold);
	while (!atomic_load(&held))
		scn_nap_us(100);
	scn_wait_until_in(SYS_read, atomic_load(&held));
	return "ok";
}

static const char *leave(const char *where)
{
	if (!strcmp(where, "register") || !strcmp(where, "vector"))
		return hold_one();
	if (!strcmp(where, "aio"))
		return syscall(SYS_io_setup, 1, &in_aio) ? "no aio" : "ok";
	if (!strcmp(where, "mover"))
		return start_moving();
	if (!strcmp(where, "sharer"))
		return start_sharer();
	if (!strcmp(where, "vfork")) {
		in_vfork = start_forker();
		return "ok";
	}
	give(where);
	if (!strcmp(where, "hidden") && mprotect(in_hidden, 4096, PROT_NONE))
		scn_broken("mprotect: %m");
	return "ok";
}

static const char *text(const void *pointer)
{
	return pointer ? pointer : "nothing";
}

static const char *use(const char *where)
{
	if (!strcmp(where, "heap"))
		return text(*in_heap);
	if (!strcmp(where, "shared"))
		return text(*in_shared);
	if (!strcmp(where, "sparse"))
		return text(*in_sparse);
	if (!strcmp(where, "static"))
		return in_static ? in_static() : "nothing";
	if (!strcmp(where, "handler")) {
		raise(SIGUSR2);
		return "ok";
	}
	if (!strcmp(where, "key")) {
		pthread_join(scn_thread(thread_with_key, "ok"), NULL);
		return "ok";
	}
	return "ok";
}

// What calls have left behind is gone.
__attribute__((noipa)) static void scrub(void)
{
	volatile char rest[16384];
	for (size_t i = 0; i < sizeof rest; i++)
		rest[i] = 0;
}

static const char *drop(const char *where)
{
	static struct epoll_event none;
	sigset_t set;
	if (!strcmp(where, "mover"))
		return stop_moving();
	if (!strcmp(where, "heap"))
		*in_heap = NULL;
	else if (!strcmp(where, "shared"))
		*in_shared = NULL;
	else if (!strcmp(where, "sparse"))
		*in_sparse = NULL;
	else if (!strcmp(where, "vfork")) {
		(void)!write(pipe_ends[1], "", 1);
		pthread_join(in_vfork, NULL);
		wait(NULL);
	}
	else if (!strcmp(where, "static"))
		in_static = NULL;
	else if (!strcmp(where, "hidden")) {
		mprotect(in_hidden, 4096, PROT_READ | PROT_WRITE);
		*in_hidden = NULL;
	} else if (!strcmp(where, "register") || !strcmp(where, "vector"))
		(void)!write(pipe_ends[1], "", 1);
	else if (!strcmp(where, "sharer"))
		end_sharer();
	else if (!strcmp(where, "handler"))
		signal(SIGUSR2, SIG_DFL);
	else if (!strcmp(where, "timer"))
		timer_delete(in_timer);
	else if (!strcmp(where, "epoll"))
		epoll_ctl(in_epoll, EPOLL_CTL_MOD, pipe_ends[0], &none);
	else if (!strcmp(where, "key")) {
		// The C library forgets the old one's destructor only when the next key takes its place.
		pthread_key_delete(in_key);
		pthread_key_create(&in_key, NULL);
	} else if (!strcmp(where, "aio"))
		syscall(SYS_io_destroy, in_aio);
	else if (!strcmp(where, "signal")) {
		siginfo_t info;
		sigemptyset(&set);
		sigaddset(&set, SIGRTMIN);
		struct timespec now = { 0 };
		if (sigtimedwait(&set, &info, &now) != SIGRTMIN)
			scn_broken("no signal waits");
		memset(&info, 0, sizeof info);
		BARRIER();
		__asm__ volatile("" ::"r"(&info) : "memory");
	} else
		return "unknown place";
	scrub();
	return "ok";
}

static const char *scn_command(const char *line)
{
	const char *where = strchr(line, ' ');
	if (!where)
		return "unknown command";
	where++;
	if (!strncmp(line, "leave", 5))
		return leave(where);
	return strncmp(line, "use", 3) ? drop(where) : use(where);
}

// Nearly all of these is never touched, and must not be by whoever searches.
enum { SPARSE = 30 };
static void map_sparse_memory(void)
{
	size_t size = 1ul << (SPARSE + 8);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	void *private = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
	int file = memfd_create("sparse", 0);
	if (private == MAP_FAILED || file < 0 || ftruncate(file, 1ul << SPARSE))
		scn_broken("sparse memory: %m");
	char *shared = mmap(NULL, 1ul << SPARSE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (shared == MAP_FAILED)
		scn_broken("sparse memory: %m");
	in_sparse = (const void **)(shared + (1ul << (SPARSE - 1)) + 0x5000);
}

int main(int count, char **values)
{
	uint64_t words = scn_argument(count, values, 1, 0) * (1ul << 20) / 8;
	uint64_t *memory = malloc(words * 8 + 8);
	for (uint64_t i = 0; i < words; i++)
		memory[i] = i * 0x9e3779b97f4a7c15;
	map_sparse_memory();
	(void)!pipe(pipe_ends);
	in_heap = calloc(1, sizeof *in_heap);
	in_shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	in_hidden = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	in_epoll = epoll_create1(0);
	in_pipe = pipe_ends[0];
	struct epoll_event event = { .events = EPOLLIN };
	epoll_ctl(in_epoll, EPOLL_CTL_ADD, pipe_ends[0], &event);
	scn_thread(holder, NULL);
	scn_thread(mover, NULL);
	for (int i = 0; i < WORKERS; i++)
		scn_thread(worker, NULL);
	scn_serve();
}
