//#Refused: thread-local seen
//#Changed: f
+|static __thread int seen;
int f(int x) {
+|	seen += x; x += seen;
	return x + 1; }
+|int g(void) { return seen; }
//#New: g
