//#Flags: -O2
//#Flags: -O2 -fPIC
//#Changed: f
//#Undefined: seen
static __thread int seen;
int f(int x) {
	seen += x;
-|	return seen + 1; }
+|	return seen + 2; }
int g(void) { return seen; }
