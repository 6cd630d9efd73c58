//#Changed: g
//#New: h
//#Data: new n.0
//#Flags: -O2
//#Compilers: gcc
__attribute__((noinline)) int f(int x) { static int n; n += x; return n; }
__attribute__((noinline)) int g(int x) { static int n; n -= x;
-|	return n;
+|	return n + 5;
}
+|__attribute__((noinline)) int h(int x) { static int n; n ^= x; return n; }
