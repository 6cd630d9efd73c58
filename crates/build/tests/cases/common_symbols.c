//#Flags: -O2 -fcommon
//#Changed: f
//#Undefined: shared
int shared;
-|int f(void) { return shared; }
+|int f(void) { return shared + 1; }
