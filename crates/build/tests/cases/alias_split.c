//#Compilers: gcc
//#Refused: alias twin
//#Changed: f
//#New: twin
__attribute__((noipa)) int f(int x) {
-|	return x + 1; }
+|	return x + 2; }
-|extern int twin(int) __attribute__((alias("f")));
+|__attribute__((noipa)) int twin(int x) { return x + 3; }
int g(int x) { return x * 2; }
