// Rust code that may panic, for a program that has nothing of Rust's.
//# pack-or-load: refuse panic_bounds_check
#include "answer.h"

int main(void)
{
	scn_serve();
}
