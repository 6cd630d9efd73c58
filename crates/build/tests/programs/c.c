#include <stdio.h>
#include "common.h"
int overridden(void) { puts("strong"); return ++initialised; }
/* Nothing calls it: goes with --gc-sections. */
int unused(int x) { printf("unused %d\n", x * 77 + initialised); return x - 5 * initialised; }
