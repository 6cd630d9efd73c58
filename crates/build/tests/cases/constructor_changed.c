//#Refused: constructor start
//#Changed: start
int puts(const char *);
-|__attribute__((constructor)) static void start(void) { puts("a"); }
+|__attribute__((constructor)) static void start(void) { puts("b"); }
