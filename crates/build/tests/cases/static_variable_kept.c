//#Changed: f
//#Undefined: count
static int count;
int f(int x) { count += x;
-|	return count;
+|	return count + 1;
}
int g(void) { return count; }
