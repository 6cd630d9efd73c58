//#Flags: -O2 -g
//#Refused: struct inner
//#Refused: struct outer
//#Refused: data all
//#Changed: f
struct inner { int a;
+|	int extra;
};
static struct outer { struct inner i; int b; } all[4];
int f(int x) { return all[x].b++; }
