//#Flags: -O2 -g
//#Allow: struct
//#Allowed: struct item
//#Changed: f
struct item { int a;
+|	int extra;
	int b; };
int f(struct item *i) { return i->b; }
