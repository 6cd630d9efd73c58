int other(int x);
int pick(int x);
int overridden(void);
int unused(int x);
extern int initialised, tentative[4];
extern __thread int counter, extern_counter;
extern void maybe(void) __attribute__((weak));
