#include "lib.h"

int nothing(int x)
{
	return x;
}
