//#Flags: -O2 -g
//#Refused: struct item
//#Changed: f
-|struct item { int a; int b; };
+|struct item { int a; unsigned b; };
int f(struct item *i) { return i->b / 3; }
