//#Flags: -O2
//#Flags: -O0
//#Flags: -Os -g
//#Flags: -O2 -fPIC
//#Changed: f
//#Defined: f
int f(int x)
{
-|	return x + 1;
+|	return x + 2;
}
int g(int x) { return x * 7; }
