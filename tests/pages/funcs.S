// Two pages of text. On the first: low(), quiet() well apart from it, and, one byte before the end, straddler(), whose
// first instruction goes on on the second page. There: high().
	.text
	.macro FUNCTION name value
	.globl \name
	.type \name, @function
\name:
	mov $0x10000000 + \value, %eax
	sub $0x10000000, %eax
	ret
	.size \name, . - \name
	.endm

	.p2align 12
	.skip 64, 0x90
FUNCTION low 1
	.skip 2048, 0x90
FUNCTION quiet 2
	.skip 512, 0x90
	.p2align 10
	.skip 1023, 0x90
FUNCTION straddler 3
	.skip 1024, 0x90
FUNCTION high 4
	.p2align 12
	.section .note.GNU-stack, "", @progbits
