//#Compilers: gcc
//#Refused: constructor start
//#Changed: f
//#New: start
static int ready;
+|__attribute__((constructor)) static void start(void) { ready = 1; }
int f(int x) {
-|	return x + ready; }
+|	return x + ready + 1; }
void g(int x) { ready = x; }
