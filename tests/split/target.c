// A task sleeps in a part that was split off a replaced function, with nothing of the function itself on its stack, in a
// program without a symbol table: cold code, the rest of a function whose head is inlined into callers, and a cold part
// that two functions share.
//
//# target: gcc -O2 pie,no-pie
//# link: -rdynamic
//
// Commands: "cold", "part", "one", "two" make the sleeper go there; "release" lets it go on.
#include "scn.h"

static int pipe_ends[2];
static atomic_int asleep;
static sem_t go;
static volatile char where;
// Read in assembler code too.
int hold;

__attribute__((noipa, cold)) int sleep_here(int x)
{
	char byte;
	atomic_store(&asleep, 1);
	while (read(pipe_ends[0], &byte, 1) < 0)
		scn_broken("read: %m");
	return x;
}

PATCHABLE int with_cold(int x)
{
	if (__builtin_expect(hold, 0)) {
		x = sleep_here(x);
		x += hold;
	}
	return x + 1;
}

__attribute__((noipa)) int work(int x)
{
	BARRIER();
	return x * 3;
}

// The head is inlined into other_user(), so that the rest becomes a function of its own, which nobody calls: both jump.
int with_part(int x)
{
	int sum = x;
	if (__builtin_expect(hold, 0)) {
		sum = sleep_here(sum);
		for (int i = 0; i < x; i++)
			sum ^= work(i + sum);
	}
	return sum;
}
__attribute__((used)) int other_user(int x)
{
	BARRIER();
	return with_part(x);
}
static int (*volatile part)(int) = with_part;

// As a linker that folds equal code, or an assembler programmer, may lay functions out.
int shares_one(int x);
int shares_two(int x);
__asm__(".text\n"
	".macro shares name\n"
	".globl \\name\n.type \\name,@function\n.p2align 4\n"
	"\\name: .cfi_startproc\n"
	"subq $8,%rsp\n.cfi_def_cfa_offset 16\n"
	"cmpl $0,hold(%rip)\n"
	"jne shared_cold\n"
	"leal 1(%rdi),%eax\n"
	"addq $8,%rsp\n.cfi_def_cfa_offset 8\n"
	"ret\n.cfi_endproc\n.size \\name,.-\\name\n"
	".endm\n"
	"shares shares_one\n"
	"shares shares_two\n"
	".section .text.unlikely\n"
	".type shared_cold,@function\n"
	"shared_cold: .cfi_startproc\n.cfi_def_cfa_offset 16\n"
	"call sleep_here\n"
	"incl %eax\n"
	"addq $8,%rsp\n.cfi_def_cfa_offset 8\n"
	"ret\n.cfi_endproc\n.size shared_cold,.-shared_cold\n"
	".text\n");

static void *sleeper(void *argument)
{
	for (;;) {
		while (sem_wait(&go))
			;
		switch (where) {
		case 'c':
			with_cold(1);
			break;
		case 'p':
			part(1);
			break;
		case 'o':
			shares_one(1);
			break;
		case 't':
			shares_two(1);
			break;
		}
		atomic_store(&asleep, 0);
	}
	return argument;
}

static const char *scn_check(void)
{
	int sum = with_cold(40) + part(41) + shares_one(40);
	return sum == 3 * 41 ? "old" : sum == 3 * 42 ? "new" : "mixed";
}

static const char *scn_command(const char *line)
{
	if (!strcmp(line, "release")) {
		hold = 0;
		(void)!write(pipe_ends[1], "", 1);
		while (atomic_load(&asleep))
			scn_nap_us(100);
		return "ok";
	}
	where = *line;
	hold = 1;
	sem_post(&go);
	while (!atomic_load(&asleep))
		scn_nap_us(100);
	hold = 0;
	return "ok";
}

int main(void)
{
	if (pipe(pipe_ends) || sem_init(&go, 0, 0))
		return 77;
	pthread_setname_np(scn_thread(sleeper, NULL), "sleeper");
	scn_serve();
}
