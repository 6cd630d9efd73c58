//#Compilers: gcc clang
//#Flags: -O2 -g
//#Changed: f
//#Why: f code
int out(int);
static inline int helper(int x) { return out(x * 3 + 5); }
int f(int x) {
-|	return helper(x) + 1; }
+|	return helper(x + 4) - 7; }
int g(int x) { return helper(x + 2) - 4; }
