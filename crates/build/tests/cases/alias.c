//#Compilers: gcc
//#Changed: f
-|int f(int x) { return x + 1; }
+|int f(int x) { return x + 2; }
extern int twin(int) __attribute__((alias("f")));
int g(int x) { return x * 2; }
