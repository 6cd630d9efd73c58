#include <stdio.h>
#include <string.h>
#include "common.h"

__thread int extern_counter = 3;
static __thread long deep[4] = { 1, 2, 3, 4 };
int tentative[4] __attribute__((common));
static int seen[16];
static int number = 2;
static const unsigned char bytes[] = { 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233 };

static int __attribute__((noinline)) helper(int x)
{
	number ^= x;
	return number + (int)deep[x & 3];
}
static int __attribute__((noinline)) twin(int x)
{
	seen[x & 15]++;
	return x * 31 + 7;
}

int other(int x)
{
	static int count;
	count++;
	return helper(x) + twin(count) + bytes[x % 13];
}

int __attribute__((weak)) overridden(void) { puts("weak"); return 1; }

static int one(int x) { printf("%s\n", "tail"); return x + 1; }
static int two(int x) { printf("%s\n", "common tail"); return x + 2; }
static const struct choice { const char *name; int (*run)(int); } choices[] = {
	{ "one", one }, { "two", two }, { NULL, NULL },
};

int pick(int x)
{
	for (const struct choice *c = choices; c->name; c++)
		if (strlen(c->name) == (size_t)(x + 2))
			return c->run(x);
	return -1;
}
