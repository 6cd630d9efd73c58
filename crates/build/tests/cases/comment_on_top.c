//#Flags: -O2
//#Flags: -O2 -g
//#Flags: -O0
+|/* one more line */
#include <assert.h>
int f(int x) { assert(x > 1); return x; }
int g(int x) { assert(x > 2 && x < 9); assert(x != 4); return x; }
