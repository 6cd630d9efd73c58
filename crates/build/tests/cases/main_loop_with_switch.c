//#Refused: never-returns serve
//#Changed: serve
int wait(void); void a(void), b(void), c(void), d(void), e(int), g(void);
__attribute__((noipa)) void serve(void)
{
	for (;;) switch (wait()) { case 0: a(); break; case 1: b(); break; case 2: c(); break; case 3: d(); break;
-|	case 4: e(1); break; case 5: g(); }
+|	case 4: e(2); break; case 5: g(); }
}
