//#Changed: f
//#Undefined: helper
static __attribute__((noinline)) int helper(int x) { asm volatile(""); return x * 3; }
int f(int x)
{
-|	return helper(x) + 1;
+|	return helper(x + 1);
}
int g(int x) { return helper(x) ^ 1; }
