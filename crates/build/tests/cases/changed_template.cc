//#Changed: _Z5twiceIiET_S0_ _Z5twiceIlET_S0_
template <class T> __attribute__((noinline)) T twice(T x) {
-|	asm volatile("" ::: "memory"); return x * 2; }
+|	asm volatile("" ::: "memory"); return x * 3; }
int f(int x) { return twice(x) + 2; }
long g(long x) { return twice(x); }
