//#Flags: -O2
//#Flags: -O0 -g
int f(int x) { return x + 1; }
