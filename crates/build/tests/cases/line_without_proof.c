//#Flags: -O2
//#Changed: f
+|
void report(int line);
void f(void) { report(__LINE__); }
void g(int x) { report(x); }
