//#Compilers: g++
//#Flags: -O2
//#Refused: constructor _GLOBAL__sub_I_a
//#Changed: _Z1fi
//#New: _GLOBAL__sub_I_a
//#Data: new b
int start(int);
int a;
+|int b = start(4);
int f(int x) {
-|	return x + 1; }
+|	return x + b; }
