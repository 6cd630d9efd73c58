//#Compilers: gcc clang
//#Flags: -O2
//#Flags: -O2 -g
//#Changed: f
void report(const char *file, int level, const char *text);
-|void f(void) { report(__FILE__, 3, "a"); }
+|void f(void) { report(__FILE__, 4, "a"); }
void g(void) { report(__FILE__, 3, "b"); }
