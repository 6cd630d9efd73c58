//#Refused: never-returns serve
//#Changed: serve
int wait(void); void handle(int);
__attribute__((noipa)) void serve(void)
{
-|	for (;;) handle(wait());
+|	for (;;) handle(wait() + 1);
}
