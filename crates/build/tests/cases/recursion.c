//#Flags: -O1
//#Changed: f
//#Undefined: f
//#Defined: f
__attribute__((noipa)) int f(int x)
{
	if (x < 2) return 1;
-|	return f(x - 1) + f(x - 2);
+|	return f(x - 1) * f(x - 2);
}
