// Vectors of 256 bits in ymm registers, as arguments and results of a replaced function, and kept across its calls by
// spinning tasks whose visits must not lose the upper halves.
//
//# layout: random
//# target: gcc,clang -O0,-O2 pie
//# patch: gcc,clang -O0,-O2 pic
//# flags: -mavx
#include "scn.h"
#include <immintrin.h>

PATCHABLE __m256 wide(__m256 a, __m256 b)
{
	BARRIER();
	return _mm256_add_ps(a, b);
}

static int off(float first)
{
	float out[8];
	_mm256_storeu_ps(out, wide(_mm256_set1_ps(first), _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)));
	for (int i = 1; i < 8; i++)
		if (out[i] != out[0] + (float)i)
			scn_broken("element %d is %f, element 0 is %f", i, (double)out[i], (double)out[0]);
	return (int)(out[0] - first);
}

static void *work(void *argument)
{
	for (int x = 0;; x = (x + 1) & 0xff) {
		int by = off((float)x);
		if (by != 0 && by != 1)
			scn_broken("wide(%d) is off by %d", x, by);
		// Only the registers know this sum for a while.
		__m256 sum = _mm256_setzero_ps(), one = _mm256_set1_ps(1);
		for (int i = 0; i < 1000; i++) {
			__asm__ volatile("" : "+x"(one));
			sum = _mm256_add_ps(sum, one);
			__asm__ volatile("" : "+x"(sum));
		}
		float out[8];
		_mm256_storeu_ps(out, sum);
		for (int i = 0; i < 8; i++)
			if (out[i] != 1000)
				scn_broken("a register has lost element %d: %f", i, (double)out[i]);
	}
	return argument;
}

static const char *scn_check(void)
{
	return off(1.5f) ? "new" : "old";
}
#include "no_command.h"

int main(void)
{
	scn_thread(work, NULL);
	scn_thread(work, NULL);
	scn_serve();
}
