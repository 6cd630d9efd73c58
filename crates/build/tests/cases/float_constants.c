//#Changed: f
-|double f(double x) { return x * 2.5 + 1.25; }
+|double f(double x) { return x * 2.5 + 1.75; }
double g(double x) { return x * 3.5 + 1.25; }
float h(float x) { return x * 1.1f; }
