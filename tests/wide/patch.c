// wide() adds one more to each element.
#include <livepatch.h>
#include <immintrin.h>
#include <stddef.h>

static __m256 lp_wide(__m256 a, __m256 b)
{
	__asm__ volatile("" ::: "memory");
	return _mm256_add_ps(_mm256_add_ps(a, b), _mm256_set1_ps(1));
}

static struct klp_func funcs[] = { { .old_name = "wide", .new_func = lp_wide }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
