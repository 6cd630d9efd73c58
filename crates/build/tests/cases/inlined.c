//#Compilers: gcc clang
//#Flags: -O2 -g
//#Changed: f g
//#Why: f inlined
int out(int);
static inline int helper(int x)
{
-|	return out(x * 3 + 5);
+|	return out(x * 3 + 6);
}
int f(int x) { return helper(x) + 1; }
int g(int x) { return helper(x + 2) - 4; }
int h(int x) { return x; }
