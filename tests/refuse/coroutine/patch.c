// What it does does not matter: it is not let in.
#include <livepatch.h>
#include <stddef.h>

static void *lp_numbers(int first)
{
	__asm__ volatile("" : "+r"(first));
	return NULL;
}

static struct klp_func funcs[] = { { .old_name = "_Z7numbersi", .new_func = lp_numbers }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
