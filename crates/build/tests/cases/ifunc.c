//#Refused: ifunc choose
//#Changed: choose resolve
//#Compilers: gcc
static int fast(int x) { return x + 1; }
static int slow(int x) { return x + 2; }
int cpu(void);
typedef int fn(int);
static fn *resolve(void);
int choose(int) __attribute__((ifunc("resolve")));
-|static fn *resolve(void) { return cpu() ? fast : slow; }
+|static fn *resolve(void) { return cpu() ? slow : fast; }
