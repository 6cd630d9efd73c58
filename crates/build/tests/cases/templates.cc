//#Changed: _Z1fi
template <class T> __attribute__((noinline)) T twice(T x) { return x * 2; }
int f(int x) {
-|	return twice(x) + 1; }
+|	return twice(x) + 2; }
long g(long x) { return twice(x); }
