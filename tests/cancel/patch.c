#include <livepatch.h>

extern void wait_here(void);
extern void look(void);
static int twos[2];

static void clean(int *what)
{
	twos[*what]++;
}

static int lp_answer(int wait)
{
	__attribute__((cleanup(clean), unused)) int what = 1;
	if (wait)
		wait_here();
	else
		look();
	__asm__ volatile("" ::: "memory");
	return 2;
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
