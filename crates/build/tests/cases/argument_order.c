//#Changed: f
int h(int, int);
-|int f(int a, int b) { return h(a, b) + 1; }
+|int f(int a, int b) { return h(b, a) + 1; }
