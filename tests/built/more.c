#include "parts.h"
#include <stdlib.h>

struct node {
	struct node *next;
	int value, weight;
};

static struct node *kept;

int keep(void)
{
	if (!kept) {
		kept = calloc(1, sizeof *kept);
		kept->value = 5;
		kept->weight = 7;
	}
	return kept->value;
}

static __attribute__((noinline)) int leaf(int x)
{
	return x * 3;
}

int spread(int a, int b, int c, int d)
{
	return leaf(a) + b * 2 + c * 3 + d * 5;
}
