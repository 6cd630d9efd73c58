// What livegraft counts on: a gs base that somebody else has set stays what it is until somebody sets it again, whatever
// the task does and whoever runs in between, and what the task creates begins with it.
//
//# target: gcc -O2 pie
//# mappings: own
//
// Commands: "blocks": the two addresses that a task's gs base may be set to. "subject", "rival": the two tasks' numbers.
// The subject does, and answers with the block that it found ("A", "B", "0" for none) or with "lost": "here" nothing,
// "switches" gives its processor away time and again, "thread", "fork" and "vfork" have a child that looks, "handler" and
// "altstack" look in a signal handler, "exec" has a program of its own look. "linger" stays in a handler until "leave",
// and looks when that has ended. "rival saw" what the rival does, which does nothing but look until "end rival".
#include "scn.h"
#include <asm/prctl.h>
#include <signal.h>
#include <sched.h>
#include <sys/wait.h>

enum { ROUNDS = 300 };
static struct block {
	uintptr_t name;
} blocks[2] = { { 'A' }, { 'B' } };
static sem_t asked, answered, leave, lingers;
static const char *wanted;
static char answer_text[8];
static _Atomic pid_t subject_tid, rival_tid;
static _Atomic char rival_saw, handler_saw;
static atomic_int rival_ends;
static pthread_t rival_thread;

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

// What the kernel says, and what the processor does.
static char look(void)
{
	uintptr_t base = 0, name;
	if (syscall(SYS_arch_prctl, ARCH_GET_GS, &base))
		return '?';
	if (!base)
		return '0';
	if (base != (uintptr_t)&blocks[0] && base != (uintptr_t)&blocks[1])
		return '?';
	__asm__ volatile("mov %%gs:0, %0" : "=r"(name));
	return name == ((struct block *)base)->name ? (char)name : '?';
}

static void *look_there(void *argument)
{
	*(char *)argument = look();
	return NULL;
}

static void handle(int signal)
{
	handler_saw = look();
	if (signal == SIGUSR2) {
		sem_post(&lingers);
		while (sem_wait(&leave))
			;
	}
}

static char from_child(pid_t child)
{
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
		return '?';
	return (char)WEXITSTATUS(status);
}

static char switches(void)
{
	char first = look();
	for (int i = 0; i < ROUNDS; i++) {
		if (i % 2)
			sched_yield();
		else
			scn_nap_us(50);
		if (look() != first)
			return '?';
	}
	return first;
}

static char raised(int signal, int flags)
{
	struct sigaction action = { .sa_handler = handle, .sa_flags = flags };
	handler_saw = '?';
	sigaction(signal, &action, NULL);
	raise(signal);
	return handler_saw;
}

static char carry_out(const char *what)
{
	char before = look(), got = '?';
	pthread_t thread;
	pid_t child;
	if (!strcmp(what, "here"))
		return before;
	if (!strcmp(what, "linger")) {
		raised(SIGUSR2, 0);
		return look();
	}
	if (!strcmp(what, "switches")) {
		got = switches();
	} else if (!strcmp(what, "thread")) {
		thread = scn_thread(look_there, &got);
		pthread_join(thread, NULL);
	} else if (!strcmp(what, "fork")) {
		child = fork();
		if (!child)
			_exit(look());
		got = from_child(child);
	} else if (!strcmp(what, "vfork")) {
		child = vfork();
		if (!child)
			_exit(look());
		got = from_child(child);
	} else if (!strcmp(what, "exec")) {
		child = fork();
		if (!child) {
			execl("/proc/self/exe", "gsbase", "look", (char *)NULL);
			_exit('?');
		}
		return from_child(child);
	} else if (!strcmp(what, "handler") || !strcmp(what, "altstack")) {
		got = raised(SIGUSR1, *what == 'a' ? SA_ONSTACK : 0);
	}
	return look() == before ? got : '?';
}

static void *subject(void *argument)
{
	static char stack[65536];
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof stack }, NULL);
	subject_tid = gettid();
	for (;;) {
		while (sem_wait(&asked))
			;
		char got = carry_out(wanted);
		snprintf(answer_text, sizeof answer_text, "%c", got);
		sem_post(&answered);
	}
	return argument;
}

// Runs in between, with a gs base of its own.
static void *rival(void *argument)
{
	rival_tid = gettid();
	while (!atomic_load(&rival_ends)) {
		rival_saw = look();
		for (volatile int i = 0; i < 1000; i++)
			;
	}
	return argument;
}

static const char *ask_subject(const char *line)
{
	wanted = line;
	sem_post(&asked);
	while (sem_wait(&answered))
		;
	return *answer_text == '?' ? "lost" : answer_text;
}

static const char *scn_command(const char *line)
{
	static char text[64];
	if (!strcmp(line, "blocks")) {
		snprintf(text, sizeof text, "%lu %lu", (unsigned long)&blocks[0], (unsigned long)&blocks[1]);
		return text;
	}
	if (!strcmp(line, "subject") || !strcmp(line, "rival")) {
		snprintf(text, sizeof text, "%d", *line == 's' ? subject_tid : rival_tid);
		return text;
	}
	if (!strcmp(line, "end rival")) {
		atomic_store(&rival_ends, 1);
		pthread_join(rival_thread, NULL);
		return "ok";
	}
	if (!strcmp(line, "rival saw")) {
		snprintf(text, sizeof text, "%c", rival_saw);
		return text;
	}
	if (!strcmp(line, "linger")) {
		wanted = "linger";
		sem_post(&asked);
		while (sem_wait(&lingers))
			;
		return "ok";
	}
	if (!strcmp(line, "leave")) {
		sem_post(&leave);
		while (sem_wait(&answered))
			;
		return *answer_text == '?' ? "lost" : answer_text;
	}
	return ask_subject(line);
}

static const char *scn_check(void)
{
	int got = answer(40);
	return got == 41 ? "old" : got == 42 ? "new" : "wrong";
}

int main(int count, char **values)
{
	if (count > 1 && !strcmp(values[1], "look"))
		return look();
	scn_thread(subject, NULL);
	rival_thread = scn_thread(rival, NULL);
	while (!subject_tid || !rival_tid)
		scn_nap_us(100);
	scn_serve();
}
