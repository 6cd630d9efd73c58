//#Changed: f
//#Removed: old
-|static __attribute__((noinline)) int old(int x) { return x > 100 ? 100 : x; }
int f(int x)
{
-|	return old(x) + 1;
+|	return x + 1;
}
