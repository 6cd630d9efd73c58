//#Changed: _Z1fi
int apply(int (*)(int), int);
int f(int x) {
-|	return apply([](int y) { return y + 1; }, x) + 1; }
+|	return apply([](int y) { return y + 1; }, x) + 2; }
