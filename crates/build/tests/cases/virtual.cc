//#Changed: _ZNK3Dog5soundEi
struct Animal { virtual int sound(int) const; virtual ~Animal(); };
struct Dog : Animal { int sound(int x) const override; };
int Animal::sound(int x) const { return x; }
Animal::~Animal() {}
-|int Dog::sound(int x) const { return x + 1; }
+|int Dog::sound(int x) const { return x + 2; }
int f(const Animal &a) { return a.sound(3); }
