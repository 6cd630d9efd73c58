// A C program and a patch whose code is Rust without its standard library.
//
//# target: gcc,clang -O2 pie,no-pie
//# patch: gcc -O2 pic
#include "answer.h"

int helper(int x)
{
	return x * 2;
}

int main(void)
{
	if (helper(2) != 4)
		return 1;
	scn_serve();
}
