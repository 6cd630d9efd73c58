//#Compilers: gcc
//#Changed: f
//#Undefined: n.0 n.1
int f(int x)
{
	if (x > 3) { static int n; n += x; x += n; }
	{ static int n; n ^= x; x -= n; }
-|	return x;
+|	return x * 5;
}
