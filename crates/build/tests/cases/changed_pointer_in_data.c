//#Refused: data table
//#Changed:
int puts(const char *);
static void a(void) { puts("a"); }
static void b(void) { puts("b"); }
-|void (*table[])(void) = { a, b };
+|void (*table[])(void) = { b, a };
