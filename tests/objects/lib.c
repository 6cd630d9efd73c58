// The shared library of objects/: a function to replace, a static twin, a thread-local variable of its own.
#include "patchable.h"

__thread int lib_thread_value = 30;
int lib_global = 300;

static PATCHABLE int twin(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 3000;
}

PATCHABLE int lib_answer(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 1;
}

int lib_twin(int x)
{
	return twin(x);
}
