//#Flags: -O2 -g
//#Refused: struct item_t
//#Changed: f
typedef struct { int a;
+|	int extra;
	int b; } item_t;
int f(item_t *i) { return i->b; }
