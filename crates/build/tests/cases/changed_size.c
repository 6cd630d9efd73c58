//#Refused: data buffer
//#Changed: f
-|char buffer[64];
+|char buffer[128];
-|void f(int x) { if (x < 64) buffer[x] = 1; }
+|void f(int x) { if (x < 128) buffer[x] = 1; }
