#define ADDED 1

struct sum {
	int of, and;
};

int ask(int x);
int counted(void);
int other_ask(int x);
int keep(void);
int spread(int a, int b, int c, int d);
