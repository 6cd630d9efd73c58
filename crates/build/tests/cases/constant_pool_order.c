//#Changed: f
double f(double x) {
+|	x += 9.75;
	return x * 2.5 + 1.25; }
double g(double x) { return x * 3.5 + 1.25; }
float h(float x) { return x * 1.1f; }
