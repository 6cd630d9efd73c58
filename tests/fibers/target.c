// Fibers: stacks that tasks leave and go on with, one fiber on each. A fiber can be suspended within the replaced function,
// and then nothing of that is on any task's stack; or outside of it, and then its stack is littered with what the function
// has left there, which nothing will return to.
//
//# target: gcc,clang -O2 pie
//# mappings: own
//
// How they are switched is a matter of flags: UCONTEXT, JUMPS, BOOST, COPIES, or none; HEAP: the stacks are in the heap;
// DIRECT: the function suspends its fiber by a setjmp of its own, into a jmp_buf on the stack of the task.
// Commands: "inside N": fiber N calls the function and is suspended in it; "outside N": it finishes the function, gives
// its result, calls it once more to the end and is suspended outside; "threads": two more tasks hand each other a fiber
// all the time; "fill": 80 MiB of memory are used.
#include "scn.h"
#include <signal.h>
#include <sys/mman.h>

#include "fiber.h"

#define FIBERS 8
#define STACK 65536

static struct fiber fibers[FIBERS];
static __thread struct fiber *current;

#if defined UCONTEXT
// The C library's contexts.
#include <ucontext.h>
static ucontext_t contexts[FIBERS], callers[FIBERS];
static void enter(struct fiber *fiber)
{
	int number = fiber - fibers;
	swapcontext(&callers[number], &contexts[number]);
}
void leave(struct fiber *fiber)
{
	int number = fiber - fibers;
	swapcontext(&contexts[number], &callers[number]);
}
static void make(struct fiber *fiber, char *stack, void (*body)(void))
{
	ucontext_t *context = &contexts[fiber - fibers];
	getcontext(context);
	context->uc_stack.ss_sp = stack;
	context->uc_stack.ss_size = STACK;
	makecontext(context, body, 0);
}

#elif defined JUMPS
// Contexts to begin with, jumps afterwards, as QEMU does it: stack pointers are hidden by the C library's guard.
#include <ucontext.h>
static ucontext_t contexts[FIBERS], caller;
static sigjmp_buf selves[FIBERS], backs[FIBERS];
static void (*first)(void);
static void enter(struct fiber *fiber)
{
	if (!sigsetjmp(*(sigjmp_buf *)fiber->back, 0))
		siglongjmp(*(sigjmp_buf *)fiber->self, 1);
}
void leave(struct fiber *fiber)
{
	JUMP_OUT(fiber);
}
static void trampoline(void)
{
	struct fiber *fiber = current;
	if (!sigsetjmp(*(sigjmp_buf *)fiber->self, 0))
		swapcontext(&contexts[fiber - fibers], &caller);
	first();
}
static void make(struct fiber *fiber, char *stack, void (*body)(void))
{
	ucontext_t *context = &contexts[fiber - fibers];
	getcontext(context);
	context->uc_stack.ss_sp = stack;
	context->uc_stack.ss_size = STACK;
	first = body;
	fiber->self = fiber->self ? fiber->self : &selves[fiber - fibers];
	fiber->back = &backs[fiber - fibers];
	makecontext(context, trampoline, 0);
	current = fiber;
	swapcontext(&caller, context);
}

#else
// The program's own few instructions, which nothing names: as Ruby has them, or as Boost does.
void change(void **save, void *load);
__asm__(".text\n .type change, @function\n"
#if defined BOOST
	"change: lea -0x38(%rsp), %rsp\n stmxcsr (%rsp)\n fnstcw 4(%rsp)\n"
	" mov %r12, 8(%rsp)\n mov %r13, 0x10(%rsp)\n mov %r14, 0x18(%rsp)\n mov %r15, 0x20(%rsp)\n"
	" mov %rbx, 0x28(%rsp)\n mov %rbp, 0x30(%rsp)\n mov %rsp, (%rdi)\n"
	" mov %rsi, %rsp\n mov 0x38(%rsp), %r8\n ldmxcsr (%rsp)\n fldcw 4(%rsp)\n"
	" mov 8(%rsp), %r12\n mov 0x10(%rsp), %r13\n mov 0x18(%rsp), %r14\n mov 0x20(%rsp), %r15\n"
	" mov 0x28(%rsp), %rbx\n mov 0x30(%rsp), %rbp\n lea 0x40(%rsp), %rsp\n jmp *%r8\n"
	".size change, . - change\n"
	"begin: push %rbp\n jmp *%rbx\n finish: xor %edi, %edi\n call _exit@plt\n");
extern char begin[], finish[];
#else
	"change: push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
	" mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
	" pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n .size change, . - change\n");
#endif
#if defined COPIES
// All fibers have one stack; what one has left there is copied away, and back before it goes on.
static char *shared, *copies[FIBERS];
static size_t lengths[FIBERS];
static void enter(struct fiber *fiber)
{
	int number = fiber - fibers;
	memcpy(fiber->self, copies[number], lengths[number]);
	change(&fiber->back, fiber->self);
	lengths[number] = shared + STACK - (char *)fiber->self;
	free(copies[number]);
	copies[number] = memcpy(malloc(lengths[number]), fiber->self, lengths[number]);
	memset(shared, 0, STACK);
}
#else
static void enter(struct fiber *fiber)
{
	change(&fiber->back, fiber->self);
}
#endif
void leave(struct fiber *fiber)
{
	change(&fiber->self, fiber->back);
}
static void make(struct fiber *fiber, char *stack, void (*body)(void))
{
#if defined COPIES
	shared = shared ? shared : stack;
	stack = shared;
#endif
	void **top = (void **)(stack + STACK);
#if defined BOOST
	top -= 8;
	memset(top, 0, 64);
	((unsigned *)top)[0] = 0x1f80;
	((unsigned *)top)[1] = 0x37f;
	top[5] = (void *)body;
	top[6] = finish;
	top[7] = begin;
	fiber->self = top;
#else
	*--top = NULL;
	*--top = (void *)body;
	fiber->self = top - 6;
#endif
#if defined COPIES
	lengths[fiber - fibers] = stack + STACK - (char *)fiber->self;
	copies[fiber - fibers] = memcpy(malloc(lengths[fiber - fibers]), fiber->self, lengths[fiber - fibers]);
#endif
}
#endif

static __thread int scratch;

// What it calls leaves an address within it on the stack.
__attribute__((noinline)) void deeper(int *value)
{
	char room[256];
	memset(room, *value, sizeof room);
	__asm__ volatile("" : : "r"(room) : "memory");
	scratch += room[7];
}

// Not the same before and after a suspension if a task changes versions in between: the patch counts by hundreds.
PATCHABLE int count(struct fiber *fiber, int yes)
{
	int before = fiber->before;
	fiber->before = before + 1;
	deeper(&before);
	if (yes)
		LEAVE(fiber);
	return fiber->before - before;
}

static void body(void)
{
	for (;;) {
		struct fiber *fiber = current;
		if (fiber->wants_inside) {
			fiber->before = 0;
			fiber->result = count(fiber, 1);
		}
		fiber = current;
		fiber->before = 0;
		fiber->again = count(fiber, 0);
		leave(fiber);
	}
}

static const char *name(int value)
{
	return value == 1 ? "old" : value == 100 ? "new" : "mixed";
}

static const char *scn_check(void)
{
	struct fiber mine = { 0 };
	return name(count(&mine, 0));
}

static void run(int number)
{
	current = &fibers[number];
	enter(current);
}

// Two tasks hand a fiber to and fro, suspended within the function half of the time.
static sem_t turns[2];
static atomic_ulong rounds;

static void hand(int mine, int number)
{
	struct fiber *fiber = &fibers[number];
	sem_wait(&turns[mine]);
	int half = mine == 0;
	fiber->wants_inside = half;
	run(number);
	if (!half && fiber->result != 1 && fiber->result != 100)
		scn_broken("a fiber was in the old and in the new version: %d", fiber->result);
	atomic_fetch_add(&rounds, 1);
	// Outside for a moment.
	if (!half)
		scn_nap_us(200);
	sem_post(&turns[!mine]);
}

static void *task(void *which)
{
	while (!atomic_load(&scn_hushed))
		hand(which != NULL, 4);
	return NULL;
}

static const char *scn_command(const char *line)
{
	static char text[64];
	int number = strchr(line, ' ') ? atoi(strchr(line, ' ')) % FIBERS : 0;
	struct fiber *fiber = &fibers[number];
	if (!strncmp(line, "inside", 6)) {
		fiber->wants_inside = 1;
		run(number);
		return "ok";
	}
	if (!strncmp(line, "outside", 7)) {
		run(number);
		fiber->wants_inside = 0;
		snprintf(text, sizeof text, "%s, then %s", name(fiber->result), name(fiber->again));
		return text;
	}
	if (!strcmp(line, "threads")) {
		sem_init(&turns[0], 0, 1);
		sem_init(&turns[1], 0, 0);
		scn_thread(task, NULL);
		scn_thread(task, turns);
		while (atomic_load(&rounds) < 100)
			scn_nap_us(1000);
		return "ok";
	}
	if (!strcmp(line, "rounds")) {
		snprintf(text, sizeof text, "%lu", atomic_load(&rounds));
		return text;
	}
	if (!strcmp(line, "fill")) {
		static char *volatile memory;
		memory = malloc(80 << 20);
		memset(memory, 1, 80 << 20);
		return "ok";
	}
	return "?";
}

int main(void)
{
#if defined DIRECT
	sigjmp_buf on_stack[FIBERS];
#endif
	// Side by side, as an allocator may place them: one mapping, and nothing between them. Or blocks of the heap.
	char *stacks = mmap(NULL, FIBERS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int number = 0; number < FIBERS; number++) {
		char *stack = stacks + number * STACK;
#if defined HEAP
		stack = malloc(STACK);
#endif
#if defined DIRECT
		fibers[number].self = &on_stack[number];
#endif
		make(&fibers[number], stack, body);
	}
	// Each has called the function, and what that left on its stack is there.
	for (int number = 0; number < FIBERS; number++)
		run(number);
	scn_serve();
}
