//#Flags: -O2 -g
//#Changed: f
-|struct pair { int a; };
+|struct pair { int a; int b; };
int f(int x) { struct pair p = { 0 }; p.a = x;
+|	p.b = x * 2; p.a += p.b;
	return p.a; }
