//#Changed: _ZN1a1fEi
//#Undefined: _ZN1aL5countE
namespace a { static int count; int f(int x) {
-|	return count += x; }
+|	return count -= x; }
int g() { return count; } }
