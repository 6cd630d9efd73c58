//#Refused: assembly .text
	.text
	.globl f
f:
-|	lea 1(%rdi), %eax
+|	lea 2(%rdi), %eax
	ret
