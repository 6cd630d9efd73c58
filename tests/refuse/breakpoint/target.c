// A debugger's breakpoint is in the function.
//# before: breakpoint
//# load: refuse answer
#include "answer.h"

int main(void)
{
	scn_serve();
}
