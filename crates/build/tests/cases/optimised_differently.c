//#OriginalFlags: -O2
//#PatchedFlags: -Os
//#Flags: -g
//#Compilers: gcc
//#Changed: g
int h(int);
int f(int x) { return h(x); }
int g(int x) { return (x / 10) * h(x) + (x % 10); }
