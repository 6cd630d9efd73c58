// One of two libraries of the same shape. Only the last byte of a constant is another one.
#include "patchable.h"

int lib_constant = CONSTANT;

PATCHABLE int lib_answer(int x)
{
	BARRIER();
	return x + CONSTANT;
}
