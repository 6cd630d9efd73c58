//#Changed: f
-|static __attribute__((noinline)) int helper(int x) { return x * 3; }
+|__attribute__((noinline)) int helper(int x) { return x * 3; }
-|int f(int x) { return helper(x); }
+|int f(int x) { return helper(x) + 1; }
