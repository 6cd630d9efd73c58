//#Changed: f
//#Undefined: puts
int puts(const char *);
-|int f(void) { return puts("a text of some length") + 1; }
+|int f(void) { return puts("A text of some length") + 1; }
int g(void) { return puts("another one") + 1; }
