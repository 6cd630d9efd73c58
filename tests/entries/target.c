// Entries of every awkward kind, one at a time and by each entry method in turn. Meanwhile a task that is held in its
// old universe calls the original functions through the redirected entries.
//
//# layout: random
//# target: gcc -O2 pie,no-pie
//# source: funcs.S
//
// What each method must do for each function: yes = it loads, no = it is refused, may = either, but cleanly; pie = yes
// in a position-independent executable, no in another (the displacement that bytes 1 to 4 make leads below address 0).
//# function: e_endbr pun=yes swap=yes rendezvous=yes
//# function: e_riprel pun=yes swap=yes rendezvous=yes
//# function: e_riplea pun=pie swap=yes rendezvous=yes
//# function: e_call pun=no swap=yes rendezvous=yes
//# function: e_call_indirect pun=yes swap=yes rendezvous=yes
//# function: e_jmp8 pun=yes swap=may rendezvous=yes
//# function: e_jmp32 pun=no swap=yes rendezvous=yes
//# function: e_jcc8 pun=pie swap=may rendezvous=yes
//# function: e_jcc32 pun=no swap=yes rendezvous=yes
//# function: e_jrcxz pun=pie swap=may rendezvous=yes
//# function: e_push pun=yes swap=no rendezvous=yes
//# function: e_movabs pun=yes swap=yes rendezvous=yes
//# function: e_five pun=yes swap=yes rendezvous=yes
//# function: e_self pun=pie swap=no rendezvous=yes
//# function: e_one pun=yes swap=no rendezvous=yes
//# function: e_two pun=yes swap=may rendezvous=yes
//# function: e_three pun=yes swap=may rendezvous=yes
//# function: e_four pun=yes swap=may rendezvous=yes
//# function: e_pair_a pun=yes swap=yes rendezvous=yes
//# function: e_pair_b pun=yes swap=may rendezvous=yes
//# function: e_page_1 pun=yes swap=no rendezvous=yes
//# function: e_page_2 pun=yes swap=no rendezvous=yes
//# function: e_page_3 pun=yes swap=no rendezvous=yes
//# function: e_page_4 pun=yes swap=no rendezvous=yes
//# function: e_page_5 pun=yes swap=may rendezvous=yes
//# function: e_self_call pun=may swap=no rendezvous=no
//# function: e_self_far pun=may swap=no rendezvous=no
//# function: e_tight_two pun=may swap=yes rendezvous=yes
//# function: e_tight_push pun=may swap=no rendezvous=yes
//# function: e_tight_one pun=may swap=no rendezvous=no
//# function: e_tight_call pun=may swap=yes rendezvous=yes
//# function: e_lonely pun=may swap=no rendezvous=no
//
// "check" says what the main task sees, "held" what the held task sees, as "NAME=old" or "NAME=new" of those that are
// not old; "old" if all are. "release" lets hold() return once.
#include "scn.h"
#include "list.h"

#define DECLARE(name, argument, result) extern int name(int);
FUNCTIONS(DECLARE)

// eax is 7 when the function is entered, and rcx a function.
__attribute__((naked, noinline)) static int call(int (*function)(int) __attribute__((unused)),
						 int argument __attribute__((unused)))
{
	__asm__("mov %rdi, %rdx\n mov %esi, %edi\n mov $7, %eax\n lea tight_helper(%rip), %rcx\n sub $8, %rsp\n call *%rdx\n add $8, %rsp\n ret\n");
}

struct view {
	char text[1024];
};

static const char *look(struct view *view)
{
	int length = 0;
	view->text[0] = 0;
#define LOOK(name, argument, result)                                                                                    \
	{                                                                                                              \
		int got = call(name, argument);                                                                       \
		if (got == result + 1000)                                                                             \
			length += snprintf(view->text + length, sizeof view->text - length, #name "=new ");             \
		else if (got != result)                                                                               \
			scn_broken(#name " is %d, neither %d nor %d", got, result, result + 1000);                      \
	}
	FUNCTIONS(LOOK)
	if (length)
		view->text[length - 1] = 0;
	else
		strcpy(view->text, "old");
	return view->text;
}

static int requests[2], answers[2];
static struct view held_view;
static atomic_int hold_version;

void hold_serve(int version)
{
	char byte = 0;
	atomic_store(&hold_version, version);
	while (read(requests[0], &byte, 1) == 1) {
		if (byte == 'r')
			return;
		look(&held_view);
		(void)!write(answers[1], "x", 1);
	}
	scn_broken("read: %m");
}

PATCHABLE void hold(void)
{
	hold_serve(1);
	BARRIER();
}

static void *holder(void *argument)
{
	for (;;)
		hold();
	return argument;
}

static void *spin(void *argument)
{
	struct view view;
	for (;;)
		look(&view);
	return argument;
}

static const char *scn_check(void)
{
	static struct view view;
	return look(&view);
}

static const char *scn_command(const char *line)
{
	char byte;
	if (!strcmp(line, "held")) {
		(void)!write(requests[1], "c", 1);
		(void)!read(answers[0], &byte, 1);
		return held_view.text;
	}
	if (!strcmp(line, "release")) {
		atomic_store(&hold_version, 0);
		(void)!write(requests[1], "r", 1);
		while (!atomic_load(&hold_version))
			scn_nap_us(100);
		return atomic_load(&hold_version) == 1 ? "old" : "new";
	}
	return "unknown command";
}

int main(void)
{
	(void)!pipe(requests);
	(void)!pipe(answers);
	scn_thread(holder, NULL);
	scn_thread(spin, NULL);
	while (!atomic_load(&hold_version))
		scn_nap_us(100);
	scn_serve();
}
