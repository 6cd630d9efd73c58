//#Refused: never-returns main
//#Changed: main
int puts(const char *);
-|int main(void) { return puts("a"); }
+|int main(void) { return puts("b"); }
