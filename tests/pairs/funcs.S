// Pairs of functions: the first is one to four bytes long, the second begins right behind it. The first returns what it
// is given in eax or edi, the second edi + 120.
	.text
	.macro PAIR number:req, first:vararg
	.p2align 4
	.globl first_\number
	.type first_\number, @function
first_\number:
	.byte \first
	.size first_\number, . - first_\number
	.globl second_\number
	.type second_\number, @function
second_\number:
	lea 120(%rdi), %eax
	ret
	.size second_\number, . - second_\number
	.byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0
	.p2align 4
	.endm

	PAIR 1 0xc3			// ret
	PAIR 2 0xf3, 0xc3		// rep ret
	PAIR 3 0x89, 0xf8, 0xc3		// mov %edi, %eax; ret
	PAIR 4 0x48, 0x89, 0xf8, 0xc3	// mov %rdi, %rax; ret
	.section .note.GNU-stack, "", @progbits
