// The executable has no function of that name.
//# pack: refuse no_such_function
#include "answer.h"

int main(void)
{
	scn_serve();
}
