// A tracer is attached to the program.
//# before: trace
//# load: refuse traced
#include "answer.h"

int main(void)
{
	scn_serve();
}
