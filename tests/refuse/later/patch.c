// One thing that is not done yet, chosen by -DUSE_....
#include <livepatch.h>
#include <stddef.h>

static int lp_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

#ifdef USE_CALLBACKS
static int before(struct klp_object *object)
{
	return object == NULL;
}
#endif

static struct klp_func funcs[] = {
	{
		.old_name = "answer",
		.new_func = lp_answer,
#ifdef USE_FUNC_IMMEDIATE
		.immediate = 1,
#endif
	},
	{ }
};
static struct klp_object objs[] = {
	{
		.name = NULL,
		.funcs = funcs,
#ifdef USE_CALLBACKS
		.callbacks = { .pre_patch = before },
#endif
	},
	{ }
};
#ifdef USE_STATES
static struct klp_state states[] = { { .id = 1, .version = 1 }, { } };
#endif
static struct klp_patch patch = {
	.objs = objs,
#ifdef USE_REPLACE
	.replace = 1,
#endif
#ifdef USE_IMMEDIATE
	.immediate = 1,
#endif
#ifdef USE_STATES
	.states = states,
#endif
};
KLP_PATCH(patch);
