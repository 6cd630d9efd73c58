//#Compilers: gcc
//#Flags: -O2
//#Changed: f leaf
//#Why: f relies on
static __attribute__((noinline)) int leaf(int x)
{
-|	return x * 3;
+|	long a = x, b = x * 7L, c = x ^ 5; asm volatile("" : "+r"(a), "+r"(b), "+r"(c) : : "rsi", "rdx", "rcx", "r8", "r9", "r10", "r11"); return a + b + c;
}
int f(int a, int b, int c, int d) { return leaf(a) + b + c + d; }
