//#Changed: f
int puts(const char *);
int f(void) {
+|	puts("first");
	return puts("second") + 1; }
int g(void) { return puts("third") + 1; }
int h(void) { return puts("second") + 2; }
