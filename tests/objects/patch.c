// Part one of the patch: the functions; part two (more.c) has a variable and a function that this part uses.
#include <livepatch.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

extern int helper(int x);
extern int hidden_variable, visible_variable, lib_global;
extern __thread int thread_value, static_thread_value, lib_thread_value;

extern int more_calls;
extern const char *more_words(void);

static const char *const words[] = { "new", "text" };
static int calls = 100;
static char buffer_never_shared[64];

static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2 + helper(10) + hidden_variable + visible_variable;
}

static int lp_lib_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2 + lib_global;
}

static int lp_twin_2(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 1200;
}

static int lp_lib_twin(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 4000;
}

static int lp_thread_values(void)
{
	__asm__ volatile("" ::: "memory");
	return 1000 + thread_value + lib_thread_value + static_thread_value;
}

static int lp_count_calls(void)
{
	int mine = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&more_calls, 1, __ATOMIC_SEQ_CST);
	buffer_never_shared[mine & 63] = (char)mine;
	return mine;
}

static int lp_describe(char *into, size_t size, int x)
{
	char first[32];
	volatile size_t length = strlen(words[0]);
	memcpy(first, words[0], length);
	first[length] = ' ';
	memcpy(first + length + 1, words[1], strlen(words[1]) + 1);
	// Standard error is unbuffered and must stay silent; its error flag says that the pointer is the real one.
	if (stderr == NULL || ferror(stderr))
		return -1;
	return snprintf(into, size, "%s %d%s", first, x, more_words());
}

static struct klp_func exe_funcs[] = {
	{ .old_name = "answer", .new_func = lp_answer },
	{ .old_name = "twin", .new_func = lp_twin_2, .old_sympos = 2 },
	{ .old_name = "thread_values", .new_func = lp_thread_values },
	{ .old_name = "count_calls", .new_func = lp_count_calls },
	{ .old_name = "describe", .new_func = lp_describe },
	{ }
};
static struct klp_func lib_funcs[] = {
	{ .old_name = "lib_answer", .new_func = lp_lib_answer },
	{ .old_name = "twin", .new_func = lp_lib_twin },
	{ }
};
static struct klp_object objs[] = {
	{ .name = NULL, .funcs = exe_funcs },
	{ .name = "libscenario.so", .funcs = lib_funcs },
	{ }
};
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
