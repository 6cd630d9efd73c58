// Every function of args/target.c gives one more.
#include <livepatch.h>
#include <stddef.h>
#define BARRIER() __asm__ volatile("" ::: "memory")
#include "shapes.h"

#define NEW(name) lp_##name
#define OLD(name) name
extern long recursive(long depth);
DEFINE_SHAPES(NEW, OLD, 1, static)

__attribute__((target("avx"))) static __m256 lp_wide(__m256 a, __m256 b)
{
	BARRIER();
	return a + b + _mm256_set1_ps(1);
}

#define FUNC(name) { .old_name = #name, .new_func = NEW(name) },
static struct klp_func funcs[] = { SHAPES(FUNC) { .old_name = "wide", .new_func = lp_wide }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
