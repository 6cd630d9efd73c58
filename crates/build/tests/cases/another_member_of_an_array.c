//#Changed: f
//#Undefined: table
static int table[16];
-|int f(void) { return table[3]; }
+|int f(void) { return table[4]; }
void g(int i, int x) { table[i] = x; }
