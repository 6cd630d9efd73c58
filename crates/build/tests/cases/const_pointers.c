//#Flags: -O2
//#Flags: -O2 -fPIC
//#Changed: f
-|static const char *const words[] = { "a", "b", "c", "d", "e", "f", "g" };
+|static const char *const words[] = { "a", "b", "c", "d", "e", "f", "h" };
static const char *const others[] = { "a", "b", "c", "d", "e", "x", "g" };
const char *f(int x) { return words[x]; }
const char *g(int x) { return others[x]; }
