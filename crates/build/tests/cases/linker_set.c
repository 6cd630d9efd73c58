//#Refused: section second
//#Changed: f
struct command { const char *name; };
__attribute__((section("commands"), used)) static struct command first = { "a" };
+|__attribute__((section("commands"), used)) static struct command second = { "b" };
int f(int x) {
-|	return x + 1; }
+|	return x + 2; }
