//#OriginalFlags: -fpatchable-function-entry=2
//#PatchedFlags: -fpatchable-function-entry=4
int f(int x) { return x + 1; }
int g(int x) { while (x > 3) x = f(x) / 2; return x; }
