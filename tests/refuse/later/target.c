// What the patch file has room for and the engine does not do yet is refused by its name. One build of the patch for
// each: -DUSE_REPLACE and so on.
//# uses: REPLACE IMMEDIATE FUNC_IMMEDIATE STATES CALLBACKS
#include "answer.h"

int main(void)
{
	scn_serve();
}
