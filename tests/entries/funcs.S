// What the padding is matters: bytes 1 to 4 of a short function are a displacement, see FINISH.
// Functions whose first instructions are awkward to redirect. Each returns FUNC_<name>'s value in eax; see list.h.
	.text
	.macro FUNCTION name
	.globl \name
	.type \name, @function
\name:
	.endm
	.macro FINISH name
	.size \name, . - \name
	.byte 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0
	.p2align 4
	.endm

	.p2align 4
FUNCTION e_endbr
	endbr64
	mov $0x10000065, %eax
	sub $0x10000000, %eax
	ret
FINISH e_endbr

FUNCTION e_riprel
	mov value_102(%rip), %eax
	ret
FINISH e_riprel

FUNCTION e_riplea
	lea value_103(%rip), %rax
	mov (%rax), %eax
	ret
FINISH e_riplea

// The callee insists on the return address that it knows from the original code.
FUNCTION e_call
	call helper
	add $4, %eax
	ret
FINISH e_call
	.type helper, @function
helper:
	lea e_call+5(%rip), %rax
	cmp %rax, (%rsp)
	mov $100, %eax
	je 1f
	mov $-1, %eax
1:	ret
FINISH helper

FUNCTION e_call_indirect
	call *helper_2_pointer(%rip)
	add $5, %eax
	ret
FINISH e_call_indirect
	.type helper_2, @function
helper_2:
	lea e_call_indirect+6(%rip), %rax
	cmp %rax, (%rsp)
	mov $100, %eax
	je 1f
	mov $-1, %eax
1:	ret
FINISH helper_2

FUNCTION e_jmp8
	.byte 0xeb, 0x06
	mov $0x44332211, %eax
	nop
	mov $106, %eax
	ret
FINISH e_jmp8

FUNCTION e_jmp32
	.byte 0xe9
	.long 1f - . - 4
	mov $-1, %eax
	ret
1:	mov $107, %eax
	ret
FINISH e_jmp32

FUNCTION e_jcc8
	.byte 0x74, 0x02
	.byte 0x66, 0x90
	mov $108, %eax
	ret
FINISH e_jcc8

FUNCTION e_jcc32
	.byte 0x0f, 0x85
	.long 1f - . - 4
	nop
1:	mov $109, %eax
	ret
FINISH e_jcc32

FUNCTION e_jrcxz
	.byte 0xe3, 0x02
	.byte 0x66, 0x90
	mov $110, %eax
	ret
FINISH e_jrcxz

FUNCTION e_push
	push %rbx
	mov %rdi, %rbx
	sub $16, %rsp
	lea 111(%rbx), %eax
	add $16, %rsp
	pop %rbx
	ret
FINISH e_push

FUNCTION e_movabs
	movabs $0x1122334455100070, %rax
	and $0xff, %eax
	ret
FINISH e_movabs

FUNCTION e_five
	mov $0x10000071, %eax
	sub $0x10000000, %eax
	ret
FINISH e_five

// Loops back to its second byte, for each of ten rounds.
FUNCTION e_self
	push %rbx
1:	inc %edi
	cmp $10, %edi
	jl 1b
	lea 104(%rdi), %eax
	pop %rbx
	ret
FINISH e_self

// The same, but what it calls returns into the loop.
FUNCTION e_self_call
	push %rbx
1:	inc %edi
	call helper_3
	cmp $10, %edi
	jl 1b
	lea 116(%rdi), %eax
	pop %rbx
	ret
FINISH e_self_call
	.type helper_3, @function
helper_3:
	ret
FINISH helper_3

// The same, but the loop is long.
FUNCTION e_self_far
	push %rbx
1:	inc %edi
	.rept 12
	lea 1(%rbx), %rbx
	.endr
	cmp $10, %edi
	jl 1b
	lea 117(%rdi), %eax
	pop %rbx
	ret
FINISH e_self_far

// One to four bytes: they return what the wrapper has put in eax, or what they are given.
FUNCTION e_one
	ret
FINISH e_one

FUNCTION e_two
	.byte 0xf3, 0xc3
FINISH e_two

FUNCTION e_three
	mov %edi, %eax
	ret
FINISH e_three

FUNCTION e_four
	mov %rdi, %rax
	ret
FINISH e_four

// Two entries within five bytes.
FUNCTION e_pair_a
	mov %edi, %eax
	ret
	.size e_pair_a, . - e_pair_a
FUNCTION e_pair_b
	lea 120(%rdi), %eax
	ret
FINISH e_pair_b

// No padding behind any of these but the last: what there is lies behind a neighbour, in reach of a short jump.
	.macro TIGHT name
	.size \name, . - \name
	.endm
FUNCTION e_tight_two
	mov %edi, %eax
	ret
TIGHT e_tight_two
FUNCTION e_tight_push
	push %rdi
	pop %rax
	ret
TIGHT e_tight_push
FUNCTION e_tight_one
	ret
TIGHT e_tight_one
// Its first instruction is a call, and has two bytes; rcx is what the wrapper has put there.
FUNCTION e_tight_call
	call *%rcx
	ret
TIGHT e_tight_call
	.globl tight_helper
	.type tight_helper, @function
tight_helper:
	mov $130, %eax
	ret
TIGHT tight_helper
	.type e_tight_end, @function
e_tight_end:
	jmp e_tight_two
FINISH e_tight_end

// No padding in reach at all.
	.macro LONG name
	.type \name, @function
\name:
	.rept 44
	lea 1(%rdi), %edi
	.endr
	ret
	.size \name, . - \name
	.endm
	LONG before_lonely
FUNCTION e_lonely
	push %rdi
	pop %rax
	ret
TIGHT e_lonely
	LONG after_lonely
	.p2align 4

// The first five bytes cross a page after one, two, three or four of them.
	.macro STRADDLE name before value
	.p2align 12
	.skip 4096 - \before, 0x90
FUNCTION \name
	push %rbp
	mov %rsp, %rbp
	sub $16, %rsp
	mov $\value, %eax
	add $16, %rsp
	pop %rbp
	ret
FINISH \name
	.endm
	STRADDLE e_page_1 1 121
	STRADDLE e_page_2 2 122
	STRADDLE e_page_3 3 123
	STRADDLE e_page_4 4 124
// A first instruction of five bytes that crosses a page itself.
	.p2align 12
	.skip 4094, 0x90
FUNCTION e_page_5
	mov $0x1000007d, %eax
	sub $0x10000000, %eax
	ret
FINISH e_page_5
	.p2align 12

	.section .data.rel.local, "aw"
	.p2align 3
helper_2_pointer:
	.quad helper_2
	.section .rodata
	.p2align 2
value_102:
	.long 102
value_103:
	.long 103
	.section .note.GNU-stack, "", @progbits
