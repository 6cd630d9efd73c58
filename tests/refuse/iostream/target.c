// A C++ patch with a static object that wants to be constructed: <iostream> brings one.
//# pack: refuse .init_array constructors
#include "answer.h"

int main(void)
{
	scn_serve();
}
