// The first COUNT functions, or SPREAD ones, add 2 instead of 1.
#include <livepatch.h>
#include <stddef.h>
#include "functions.h"

#ifndef COUNT
#define COUNT 256
#endif
#define ALL_OF_(count) ALL_##count
#define ALL_OF(count) ALL_OF_(count)

#define NEW(n) static int lp_answer_##n(int x) { __asm__ volatile("" ::: "memory"); return x + 2; }
ALL_OF(COUNT)(NEW)
#define FUNC(n) { .old_name = "answer_" #n, .new_func = lp_answer_##n },
static struct klp_func funcs[] = { ALL_OF(COUNT)(FUNC) { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
