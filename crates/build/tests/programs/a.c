#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"

__thread int counter = 7;
static __thread int calls;
static __thread char scratch[32];
int tentative[4] __attribute__((common));
int initialised = 42;
const char *const names[] = { "zero", "one", "two", "three" };
static int seen[16];

/* The same names in b.c, with other code or the same. */
static int number = 1;
static int __attribute__((noinline)) helper(int x)
{
	number += x;
	return number * 3 + counter;
}
static int __attribute__((noinline)) twin(int x)
{
	seen[x & 15]++;
	return x * 31 + 7;
}

static int __attribute__((noinline)) add(int a, int b) { return a + b; }
static int __attribute__((noinline)) sub(int a, int b) { return a - b; }
static int __attribute__((noinline)) mul(int a, int b) { return a * b; }
static int __attribute__((noinline)) nothing(int a, int b) { (void)a; (void)b; return 0; }
static int (*const table[])(int, int) = { add, sub, mul, nothing };
static int (*volatile writable)(int, int) = sub;

/* A jump table. */
int __attribute__((noinline)) dispatch(int op, int x)
{
	switch (op) {
	case 0: return helper(x);
	case 1: return twin(x);
	case 2: printf("two %d\n", x); return 2;
	case 3: return other(x);
	case 4: return x * 7 + tentative[1];
	case 5: return puts("five"), 5;
	case 6: return strlen(names[x & 3]);
	case 7: return x / 3;
	default: abort();
	}
}

static double __attribute__((noinline)) scale(double x) { return x * 3.25 + sqrt(x); }
static float __attribute__((noinline)) half(float x) { return x * 0.5f; }

int *__attribute__((noinline)) where(void)
{
	calls++;
	snprintf(scratch, sizeof scratch, "%d", calls);
	return &counter;
}

void __attribute__((cold, noinline)) fatal(const char *what)
{
	fprintf(stderr, "fatal: %s: %s\n", what, strerror(errno));
	exit(2);
}

int main(int argc, char **argv)
{
	int (*volatile lookup)(const char *, const char *) = strcmp;
	int sum = 0;
	if (argc > 5)
		fatal(argv[1]);
	if (maybe)
		maybe();
	for (int i = 0; i < 8; i++)
		sum += dispatch(i, argc + i) + table[i & 3](i, argc) + writable(i, 2);
	sum += lookup("a", argv[0]) > 1000;
	*where() += 1;
	extern_counter += 2;
	sum += pick(argc) + overridden() + initialised;
	printf("%d %d %f %f %s\n", sum, *where(), scale(argc), half(argc), "common tail");
	return sum == 1234567 ? errno : 0;
}
