//#Compilers: gcc
//#Changed: f
int puts(const char *); void abort(void) __attribute__((noreturn, cold)); int log_it(int);
__attribute__((noipa)) int f(int x)
{
	if (__builtin_expect(x > 5, 0)) { log_it(x);
-|		log_it(3);
+|		log_it(4);
		abort(); }
	return x + 1;
}
__attribute__((noipa)) int g(int x)
{
	if (__builtin_expect(x > 5, 0)) { log_it(x); log_it(9); abort(); }
	return x + 1;
}
