# Every instruction that a linker rewrites under a relocation, with low and high registers.
	.file	"forms.s"
	.text
	.globl	forms
	.type	forms, @function
forms:
	movq	inside@GOTPCREL(%rip), %rax
	movq	inside@GOTPCREL(%rip), %r15
	movl	inside@GOTPCREL(%rip), %ecx
	movl	inside@GOTPCREL(%rip), %r9d
	testq	%rdx, inside@GOTPCREL(%rip)
	testq	%r10, inside@GOTPCREL(%rip)
	testl	%esi, inside@GOTPCREL(%rip)
	addq	inside@GOTPCREL(%rip), %rax
	orq	inside@GOTPCREL(%rip), %r8
	adcl	inside@GOTPCREL(%rip), %ebx
	sbbq	inside@GOTPCREL(%rip), %r12
	andq	inside@GOTPCREL(%rip), %rdi
	subq	inside@GOTPCREL(%rip), %r13
	xorl	inside@GOTPCREL(%rip), %r14d
	cmpq	inside@GOTPCREL(%rip), %rbp
	movq	outside@GOTPCREL(%rip), %rax
	cmpq	outside@GOTPCREL(%rip), %rax
	pushq	inside@GOTPCREL(%rip)
	call	*inside@GOTPCREL(%rip)
	call	*outside@GOTPCREL(%rip)
	movq	local@GOTTPOFF(%rip), %rax
	movq	local@GOTTPOFF(%rip), %r11
	addq	local@GOTTPOFF(%rip), %rdx
	addq	local@GOTTPOFF(%rip), %r9
	addq	local@GOTTPOFF(%rip), %rsp
	addq	local@GOTTPOFF(%rip), %r12
	data16 leaq	local@TLSGD(%rip), %rdi
	.value	0x6666
	rex64
	call	__tls_get_addr@PLT
	data16 leaq	local@TLSGD(%rip), %rdi
	.byte	0x66
	rex64
	call	*__tls_get_addr@GOTPCREL(%rip)
	leaq	own@TLSLD(%rip), %rdi
	call	__tls_get_addr@PLT
	leaq	own@DTPOFF(%rax), %rcx
	leaq	own@TLSLD(%rip), %rdi
	call	*__tls_get_addr@GOTPCREL(%rip)
	leaq	own@DTPOFF(%rax), %rcx
	leaq	local@TLSDESC(%rip), %rax
	call	*local@TLSCALL(%rax)
	jmp	*inside@GOTPCREL(%rip)
	.size	forms, .-forms

	.globl	inside
	.type	inside, @function
inside:
	leaq	number(%rip), %rax
	movl	$0x12345, %eax
	imulq	$0x54321, %rdx, %rcx
	bswapq	%rcx
	xorq	%rcx, 0x33(%rdx,%rcx,4)
	jmp	*outside@GOTPCREL(%rip)
	.size	inside, .-inside

	.data
	.type	number, @object
	.size	number, 8
number:	.quad	0x1122334455667788

	.section .tdata,"awT",@progbits
	.type	own, @object
	.size	own, 4
own:	.long	9
	.globl	local
	.type	local, @object
	.size	local, 8
local:	.quad	5

	.section .note.GNU-stack,"",@progbits
