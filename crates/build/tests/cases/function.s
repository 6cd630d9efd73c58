//#Refused: assembly f
//#Changed: f
	.text
	.globl f
	.type f, @function
f:
-|	lea 1(%rdi), %eax
+|	lea 2(%rdi), %eax
	ret
