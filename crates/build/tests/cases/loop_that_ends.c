//#Changed: serve
int wait(void); void handle(int);
__attribute__((noipa)) void serve(void)
{
	int n;
-|	while ((n = wait())) handle(n);
+|	while ((n = wait())) handle(n + 1);
}
