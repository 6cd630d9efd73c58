// It says that it is a Go program: stacks that move.
//# pack-or-load: refuse Go
#include "answer.h"

__asm__(".section .note.go.buildid, \"a\", @note\n .p2align 2\n .long 4, 8, 4\n .asciz \"Go\\0\"\n .ascii \"scenario\"\n .text\n");

int main(void)
{
	scn_serve();
}
