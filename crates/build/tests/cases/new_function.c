//#Changed: f
//#New: check
//#Flags: -O2
//#Defined: check
+|static __attribute__((noinline)) int check(int x) { return x > 100 ? 100 : x; }
int f(int x)
{
-|	return x + 1;
+|	return check(x) + 1;
}
