/* The program's own checks, compiled into a patch. */
#define PATCH
#include "checks.h"
#include <livepatch.h>

static int new_counter = 3;
static int new_zeroes[4000];
static const char *new_names[] = { "a", "b" };

static void lp_probe(char *out, size_t size)
{
	new_counter++;
	new_zeroes[3999] += new_counter;
	checks(out, size);
	if (new_zeroes[3999] == 0 || new_names[new_counter & 1][0] == 0)
		*out = 0;
}

static struct klp_func funcs[] = { { .old_name = "probe", .new_func = lp_probe }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
