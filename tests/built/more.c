#include "parts.h"

struct node {
	struct node *next;
	int value, weight;
};

static struct node first, *kept;

int keep(void)
{
	if (!kept) {
		kept = &first;
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
