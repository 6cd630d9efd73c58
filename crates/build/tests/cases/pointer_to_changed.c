//#Changed: f
//#Undefined: f
//#Defined: f
typedef int fn(int);
__attribute__((noipa)) int f(int x);
extern fn *handler;
__attribute__((noipa)) int f(int x)
{
	handler = f;
-|	return x + 1;
+|	return x + 2;
}
__attribute__((noipa)) fn *get(void) { return f; }
