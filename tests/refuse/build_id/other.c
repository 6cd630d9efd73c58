// The other build.
#include "answer.h"

int main(void)
{
	(void)!write(2, "other\n", 6);
	scn_serve();
}
