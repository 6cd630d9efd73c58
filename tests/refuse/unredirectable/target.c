// One byte long, bytes 1 to 4 lead below address 0, and they are code, not padding: no entry method can work.
//# target: gcc -O2 no-pie
//# pack-or-load: refuse stub
#include "answer.h"

__asm__(".text\n .p2align 4\n .skip 16, 0xcc\n .globl stub\n .type stub, @function\n"
	"stub: ret\n .size stub, 1\n .skip 40, 0xc3\n");
extern void stub(void);

int main(void)
{
	stub();
	scn_serve();
}
