// The user may not touch the program.
//# before: nobody
//# load: refuse permi
#include "answer.h"

int main(void)
{
	scn_serve();
}
