//#Changed: _Z1fi
//#Undefined: _Z4riski
struct Bad { int x; }; struct Worse { int x; };
int risk(int);
int f(int x) {
-|	try { return risk(x); } catch (Bad &b) { return b.x; } }
+|	try { return risk(x); } catch (Worse &b) { return b.x; } }
int g(int x) { try { return risk(x); } catch (Bad &b) { return b.x + 1; } }
