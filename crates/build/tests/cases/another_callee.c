//#Changed: f
int h(int); int k(int);
-|int f(int a) { return h(a) + 1; }
+|int f(int a) { return k(a) + 1; }
