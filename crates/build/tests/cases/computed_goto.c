//#Compilers: gcc
//#Flags: -O2
//#Flags: -O2 -fPIC
//#Changed: f
int out(int);
int f(const unsigned char *p)
{
	static const void *const labels[] = { &&a, &&b, &&c, &&d };
	int x = 0;
	goto *labels[*p++ & 3];
-|a: x += out(1); goto *labels[*p++ & 3];
+|a: x += out(1) * 9 + out(x); goto *labels[*p++ & 3];
b: x -= out(2); goto *labels[*p++ & 3];
c: x ^= out(3); goto *labels[*p++ & 3];
d: return x;
}
int g(int x) { return x * 2; }
