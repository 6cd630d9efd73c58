//#Refused: data limit
//#Data: changed limit
-|static int limit = 10;
+|static int limit = 20;
int f(int x) { return x > limit ? limit : x; }
void g(int x) { limit = x; }
