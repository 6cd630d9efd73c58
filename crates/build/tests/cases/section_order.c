//#Flags: -O2 -g
-|int f(int x) { static int n; return n += x; }
-|int g(int x) { static int n; return n -= x; }
+|int g(int x) { static int n; return n -= x; }
+|int f(int x) { static int n; return n += x; }
