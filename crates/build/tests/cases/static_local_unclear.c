//#Compilers: gcc
//#Changed: g
//#New: h
//#Removed: f
//#Refused: static n
-|int f(int x) { static int n; n += x; return n; }
int g(int x) { static int n; n -= x;
-|	return n;
+|	return n + 3;
}
+|int h(int x) { static int n; n ^= x; return n; }
