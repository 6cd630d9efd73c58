/* A library with an IFUNC that nobody refers to, and one that its own code calls. */
static int one(void) { return 1; }
static int two(void) { return 2; }
static int (*choose_one(void))(void) { return one; }
static int (*choose_two(void))(void) { return two; }
int unused_indirect(void) __attribute__((ifunc("choose_one")));
__attribute__((visibility("hidden"))) int used_indirect(void) __attribute__((ifunc("choose_two")));
int call_used(void) { return used_indirect(); }
int where_two(void) { return (int)(long)two; }
