//#Flags: -O2 -g
//#Changed: f
struct item { int a; struct item *next; unsigned bits : 3; char name[12]; };
int f(struct item *i) {
-|	return i->a + i->next->bits; }
+|	return i->a - i->next->bits; }
