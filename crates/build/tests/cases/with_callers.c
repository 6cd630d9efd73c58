//#WithCallers: helper
//#Changed: helper f
//#Why: f --with-callers
__attribute__((noinline)) int helper(int x)
{
-|	return x * 3;
+|	return x * 4;
}
int f(int x) { return helper(x) + 1; }
int g(int x) { return x + 2; }
