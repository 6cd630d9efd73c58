// A uprobe is on the function.
//# before: uprobe
//# load: refuse answer
#include "answer.h"

int main(void)
{
	scn_serve();
}
