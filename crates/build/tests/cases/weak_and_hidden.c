//#Changed: f
//#Undefined: w h
__attribute__((weak, noinline)) int w(int x) { return x + 1; }
__attribute__((visibility("hidden"), noinline)) int h(int x) { asm volatile(""); return x + 2; }
int f(int x) {
-|	return w(x) + h(x); }
+|	return w(x) - h(x); }
