// long self_loop(long rounds, long sum): adds one for each round, and begins the next by a jump to its own first byte.
	.text
	.p2align 4
	.globl self_loop
	.type self_loop, @function
self_loop:
	mov $0xe0ffffff, %eax
	test %rdi, %rdi
	je 1f
	inc %rsi
	dec %rdi
	jmp self_loop
1:	mov %rsi, %rax
	ret
	.size self_loop, . - self_loop
	.byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0
	.p2align 4
	.section .note.GNU-stack, "", @progbits
