//#Flags: -O2 -g
//#Refused: struct item
//#Changed: f
struct item { int a;
+|	int extra;
	int b; };
int f(struct item *i) { return i->b; }
int g(int x) { return x; }
