//#Refused: data version
//#Changed: f
-|const int version = 3;
+|const int version = 4;
int puts(const char *);
-|int f(void) { return puts("x") + 1; }
+|int f(void) { return puts("x") + 2; }
