// Arguments and results of every shape survive the redirection: registers, stack, floating point, vectors, varargs,
// structs, recursion. The new versions add 1 to everything.
//
//# layout: random
//# target: gcc,clang -O0,-O2 pie,no-pie
//# patch: gcc,clang -O0,-O2 pic
//# entry: auto,pun?,swap?
#include "scn.h"
#include "shapes.h"

#define OLD(name) name
DEFINE_SHAPES(OLD, OLD, 0, PATCHABLE)

static long triple(long x)
{
	return 3 * x;
}

// By how much each result is off from the old one, in units of one: 0 = old, 1 = new.
static int offs[32];
static _Thread_local int *off;
#define OFF(value) (*off++ = (int)(value))

static int measure(int *into)
{
	off = into;
	OFF(ten_integers(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) - 385);
	OFF(ten_floats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) - 385);
	OFF(ten_doubles(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) - 385);
	OFF(ten_long_doubles(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) - 385);
	OFF(mixed(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) - 385);
	__m128 one = _mm_setr_ps(1, 2, 3, 4), sum = vector(one, one, one, one, one, one, one, one, one);
	float floats[4];
	_mm_storeu_ps(floats, sum);
	OFF(floats[0] - 9);
	OFF(floats[3] - 36);
	OFF(variadic(6, 1l, 1.0, 2l, 2.0, 3l, 3.0, 4l, 4.0, 5l, 5.0, 6l, 6.0) - 42);
	struct big big = { { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }, 13 };
	OFF(big_by_value(1, big, 2) - 94);
	struct big back = big_returned(100);
	OFF(back.words[11] - 111);
	OFF(back.real - 100);
	struct small small = small_returned(7, 9);
	OFF(small.whole - 7);
	OFF(small.real - 9);
	struct tiny tiny = tiny_returned(5);
	OFF(tiny.a - 5);
	OFF(tiny.c - 7);
	const char *text = "0123456789", *kept;
	OFF(pointers(text, &kept, triple, 2) - text - 6);
	OFF(kept - text - 6);
	OFF(narrow(250, 1, -1) - 250);
	_Complex double complex_sum = complex_returned(1 + 2.0i, 3);
	OFF(__real__ complex_sum - 4);
	OFF(int128(1, 5) - ((__int128)1 << 70) - 5);
	OFF(recursive(1));
	off[-1] -= 1;
	long deep = recursive(40);
	if (deep != 40 && deep != 80)
		scn_broken("recursive(40) is %ld: old and new were mixed", deep);
	return (int)(off - into);
}

static void *work(void *argument)
{
	int mine[32];
	for (;;) {
		int count = measure(mine);
		for (int i = 0; i < count; i++)
			if (mine[i] != 0 && mine[i] != 1)
				scn_broken("result %d is off by %d", i, mine[i]);
	}
	return argument;
}

static const char *scn_check(void)
{
	static char text[256];
	int count = measure(offs), sum = 0, length = 0;
	for (int i = 0; i < count; i++) {
		sum += offs[i];
		length += snprintf(text + length, sizeof text - length, "%d ", offs[i]);
	}
	return sum == 0 ? "old" : sum == count ? "new" : text;
}
#include "no_command.h"

int main(void)
{
	scn_thread(work, NULL);
	scn_thread(work, NULL);
	scn_serve();
}
