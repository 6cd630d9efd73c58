// New versions of answer() and describe(), which use what there is in the program.
#include <livepatch.h>
#include <stdio.h>
#include <string.h>

extern __thread int thread_value;
extern int hidden_variable;

static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

static int lp_describe(char *into, size_t size, int x)
{
	// Large enough that it is a call.
	char text[1024], copy[1024];
	if (!stderr || fflush(stderr))
		return -1;
	snprintf(text, sizeof text, "new text %d %d %d", x, thread_value, hidden_variable);
	memcpy(copy, text, sizeof copy);
	return snprintf(into, size, "%s", copy);
}

static struct klp_func funcs[] = {
	{ .old_name = "answer", .new_func = lp_answer },
	{ .old_name = "describe", .new_func = lp_describe },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
