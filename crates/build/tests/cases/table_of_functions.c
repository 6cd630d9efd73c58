//#Refused: data ops
//#Changed: start
struct ops { int (*open)(int); int (*close)(int); int flags; };
void enlist(const struct ops *);
static int open_it(int x) { return x + 1; }
static int close_it(int x) { return x + 2; }
-|static const struct ops ops = { open_it, close_it, 3 };
+|static const struct ops ops = { open_it, close_it, 4 };
void start(void) { enlist(&ops); }
