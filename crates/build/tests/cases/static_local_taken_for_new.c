//#Compilers: gcc
//#Allow: n
//#New: h
//#Removed: f
//#Allowed: static n
-|int f(int x) { static int n; n += x; return n; }
+|int h(int x) { static int n; n ^= x; return n; }
