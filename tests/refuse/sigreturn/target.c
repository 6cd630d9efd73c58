// A static program that handles no signal, and so has no code that returns from a handler.
//# target: musl-gcc -O2 static
//# load: refuse rt_sigreturn
#include "answer.h"

int main(void)
{
	scn_serve();
}
