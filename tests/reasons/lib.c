// Each function goes into the patch for another reason: crates/scenarios/tests/reasons.rs has them. Nothing runs it.
#include "lib.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOINLINE __attribute__((noinline))

__attribute__((cold, noreturn)) NOINLINE void fatal(int x, const char *why)
{
	fprintf(stderr, "%s: %d\n", why, x);
	exit(x);
}

static int hits;
static const int weights[] = { 3, 1, 4, 1, 5, 9 };

static inline int clamp(int x)
{
	if (x < 0)
		return 0;
	return x > 50 ? 50 : x;
}

/* The source is changed: in one place, with a string, a static variable and an assertion around it. */
int parse(const char *s)
{
	static int calls;
	int sum = 0;

	calls++;
	if (strlen(s) > 4096) {
		puts("too long");
		return -1;
	}
	for (; *s; s++)
		sum += *s;
	assert(sum != 77);
	return sum + calls;
}

/* What is inlined into it is changed. */
NOINLINE int scaled(int x)
{
	hits++;
	return clamp(x) * 3;
}

/* Its caller, for --with-callers. */
int twice(int x)
{
	int got = scaled(x);
	hits++;
	return got * 2;
}

/* A macro, in it and in what is inlined into it. */
int checked(int x)
{
	return x > TWICE_LIMIT ? x : hits;
}

static inline int within(int x)
{
	for (int i = 0; i < x; i++)
		if (i * i == LIMIT)
			hits++;
	return x < LIMIT;
}

int bounded(int x)
{
	return within(x) ? hits : 0;
}

/* A constant. */
int look(int key)
{
	return weights[key & 3] + weights[key & 1];
}

/* Registers that its callee left alone. */
static NOINLINE int leaf(int x)
{
	return x * 7 + 1;
}

int leafy(int a, int b)
{
	return leaf(a) + a * b + leaf(b) * a - b;
}

/* A part that is split off. */
int graded(int x)
{
	if (__builtin_expect(x == 12345, 0))
		fatal(x, "bad");
	return x ^ hits;
}

/* A copy for one value of an argument. */
static NOINLINE int power(int x, int n)
{
	int y = 1;
	while (n--)
		y *= x + hits;
	return y;
}

int powers(int x)
{
	return power(x, 5) + power(hits, 5);
}

/* A struct that lives on the stack only. */
static NOINLINE struct span around(long x)
{
	struct span span = { .from = x - hits, .to = x + hits };
	return span;
}

long across(long x)
{
	struct span span = around(x);
	return span.from * span.to;
}

/* An enumerator, of which nothing tells. */
int factor(int x)
{
	return x * FACTOR + hits;
}

/* One that is inlined until it grows. */
static int small(int x)
{
	return x ^ 5;
}

int grown(int x)
{
	return small(x) + small(x + 1);
}

int thrice(int x)
{
	return small(x) * 3;
}

/* Nothing changes here, but the line of an assertion. */
int same(int x)
{
	assert(x != 7);
	return x + 1;
}
