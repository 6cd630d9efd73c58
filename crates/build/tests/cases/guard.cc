//#Changed: _Z1fi
//#Undefined: _ZZ1fiE5value
int start(); int g(int);
int f(int x) {
	static int value = start();
-|	return value + x; }
+|	return value - x; }
