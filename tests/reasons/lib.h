#define LIMIT 100
#define TWICE_LIMIT (2 * LIMIT)
enum { FACTOR = 3 };

struct span {
	long from, to;
};

int parse(const char *s);
int scaled(int x);
int twice(int x);
int checked(int x);
int bounded(int x);
int look(int key);
int leafy(int a, int b);
int graded(int x);
int powers(int x);
long across(long x);
int factor(int x);
int grown(int x);
int thrice(int x);
int same(int x);
