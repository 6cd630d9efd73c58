// int count(long *clear) is 11: 10 and what step() says, each of which is replaced. after_step is where step() returns to.
//
// Each holder has that address in its frame as a dead word, and waits in job(). Each driver calls a holder, and then
// runner() so that after_step comes to lie in the very same word, not dead any more. A further dead word keeps runner()'s
// task from switching itself when it enters count(), which removes it, so that it could do so only at the entry of step().
	.text

	.macro function name
	.p2align 4
	.globl \name
	.type \name, @function
\name:
	.cfi_startproc
	.endm

	.macro end name
	.cfi_endproc
	.size \name, . - \name
	.endm

	.macro move by
	.if \by < 0
	sub $-(\by), %rsp
	.else
	add $\by, %rsp
	.endif
	.cfi_adjust_cfa_offset -(\by)
	.endm

	.macro hold
	lea after_step(%rip), %rax
	mov %rax, 8(%rsp)
	xor %eax, %eax
	call job
	.endm

	function count
	move -8
	movq $0, (%rdi)
	call step
	.globl after_step
	.hidden after_step
after_step:
	move 8
	add $10, %eax
	ret
	end count

	function step
	mov $1, %eax
	nopl 0(%rax)
	ret
	end step

	function runner
	move -24
	lea after_step(%rip), %rax
	mov %rax, (%rsp)
	mov %rsp, %rdi
	call count
	move 24
	ret
	end runner

	function holder
	move -56
	hold
	move 56
	ret
	end holder

	function deeper_holder
	move -72
	hold
	move 72
	ret
	end deeper_holder

// Two functions by one call.
	function by_pointer
	push %rbx
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbx, 0
	lea holder(%rip), %rbx
1:	call *%rbx
	lea runner(%rip), %rcx
	cmp %rcx, %rbx
	mov %rcx, %rbx
	jne 1b
	pop %rbx
	.cfi_adjust_cfa_offset -8
	.cfi_restore %rbx
	ret
	end by_pointer

// The return address of its first call is still where it was while the second one is in progress.
	function with_alloca
	push %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
	call deeper_holder
	mov $16, %eax
	sub %rax, %rsp
	call runner
	leave
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	ret
	end with_alloca

// The same, the depth of both being known.
	function with_arguments
	move -8
	call deeper_holder
	move -16
	call runner
	move 24
	ret
	end with_arguments

	function tail_holder
	move -56
	hold
	move 56
	jmp runner
	end tail_holder

	function by_tail
	move -8
	call tail_holder
	move 8
	ret
	end by_tail

// A thread's function. Another one's is runner(), later, on the same stack.
	function first
	move -56
	hold
	call and_then
	xor %eax, %eax
	move 56
	ret
	end first

	.section .note.GNU-stack, "", @progbits
