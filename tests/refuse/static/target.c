// A static program: not handled yet, and named.
//# link: -static
//# pack-or-load: refuse static
#include "answer.h"

int main(void)
{
	scn_serve();
}
