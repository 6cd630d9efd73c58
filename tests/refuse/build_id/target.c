// The patch was packed for another build of the program.
//# packed-for: other.c
//# load: refuse build-id|build id
#include "answer.h"

int main(void)
{
	scn_serve();
}
