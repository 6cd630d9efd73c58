//#Compilers: gcc
//#Flags: -O2 -flto
//#Flags: -O2 -flto -ffat-lto-objects
//#Error: -flto
int f(int x) { return x + 1; }
