#include "lib.h"
#include <stdio.h>

int main(int argc, char **argv)
{
	int x = parse(argv[0]) + twice(argc) + checked(argc) + bounded(argc) + look(argc);
	x += leafy(argc, 2) + graded(argc) + powers(argc) + (int)across(argc) + factor(argc) + grown(argc);
	printf("%d\n", x + thrice(argc) + same(argc));
	return 0;
}
