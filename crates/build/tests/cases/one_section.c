//#Compilers: gcc
//#Flags: -O2 -fno-function-sections
//#Flags: -O0 -fno-function-sections
//#Flags: -O2 -fPIC -fno-function-sections
//#Changed: f
//#Undefined: helper state
static int other = 4, state = 5;
static __attribute__((noipa)) int helper(int x) { return x * 3 + other; }
__attribute__((noipa)) int g(int x) { state += x; return helper(x) ^ 1; }
__attribute__((noipa)) int f(int x)
{
+|	x += 7; x ^= helper(x + 2);
	state++;
	return helper(x) + 1;
}
__attribute__((noipa)) int h(int x) { other -= x; return helper(x) + g(2) + state; }
