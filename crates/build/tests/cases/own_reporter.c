//#Flags: -O2
//#Flags: -O2 -g
+|
+|
void report(const char *file, int line, const char *text);
void f(void) { report(__FILE__, __LINE__, "a"); }
void g(void) { report(__FILE__, __LINE__, "b"); }
void h(int x) { if (x) report(__FILE__, __LINE__, "c"); }
