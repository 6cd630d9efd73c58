// Every function of args/target.c gives one more.
#include <livepatch.h>
#include <stddef.h>
#define BARRIER() __asm__ volatile("" ::: "memory")
#include "shapes.h"

#define NEW(name) lp_##name
#define OLD(name) name
extern long recursive(long depth);
DEFINE_SHAPES(NEW, OLD, 1, static)

#define FUNC(name) { .old_name = #name, .new_func = NEW(name) },
static struct klp_func funcs[] = { SHAPES(FUNC) { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
