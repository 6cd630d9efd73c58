//#Compilers: clang
//#Flags: -O2 -flto
//#Error: -flto
int f(int x) { return x + 1; }
