//#Compilers: gcc
//#Changed:
//#New: twin
__attribute__((noipa)) int f(int x) { return x + 1; }
-|extern int twin(int) __attribute__((alias("f")));
+|__attribute__((noipa)) int twin(int x) { return x + 1; }
