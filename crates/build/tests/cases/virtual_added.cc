//#Compilers: g++
//#Flags: -O2
//#Refused: data _ZTV3Dog
//#New: _ZN3Dog4playEi
//#Changed:
struct Dog { virtual int sound(int); virtual int run(int);
+|	virtual int play(int);
};
int Dog::sound(int x) { return x + 1; }
int Dog::run(int x) { return x - 1; }
+|int Dog::play(int x) { return x * 2; }
