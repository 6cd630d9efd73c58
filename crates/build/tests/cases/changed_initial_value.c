//#Refused: data limit
//#Changed: f
-|int limit = 10;
+|int limit = 20;
int f(int x) {
+|	x++;
	return x > limit ? limit : x; }
