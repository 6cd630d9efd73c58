//#Compilers: clang
//#Changed: g
//#New: h
//#Data: new h.n
__attribute__((noinline)) int f(int x) { static int n; n += x; return n; }
__attribute__((noinline)) int g(int x) { static int n; n -= x;
-|	return n;
+|	return n + 5;
}
+|__attribute__((noinline)) int h(int x) { static int n; n ^= x; return n; }
