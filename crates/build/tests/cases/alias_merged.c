//#Compilers: gcc
//#Changed: f
-|__attribute__((noipa)) int f(int x) { return x + 1; }
+|__attribute__((noipa)) int f(int x) { return x + 2; }
-|__attribute__((noipa)) int twin(int x) { return x + 3; }
+|extern int twin(int) __attribute__((alias("f")));
int g(int x) { return x * 2; }
