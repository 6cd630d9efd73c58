// A program in C++ of several files, built by cmake, stripped, and patched by `livegraft build` from a diff of its
// source: see crates/scenarios/tests/build_cpp.rs.
//
//# target: gcc -O2 pie
//# mappings: own
#include "scn.h"

int one_scaled(int x), two_scaled(int x), one_header(int x), two_header(int x), one_hidden(int x), two_hidden(int x);
int one_counted(void), two_counted(void), caught(int code), shapes_area(void *shapes);
void *shapes_make(void);

static void *shapes;

// What differs from before, as bits.
static unsigned look(void)
{
	const int is[] = { one_scaled(5), two_scaled(5), one_header(5), two_header(5), one_hidden(5), two_hidden(5),
			   one_counted() * 1000 + two_counted(), caught(1), caught(7), shapes_area(shapes) };
	const int was[] = { 15, 18, 36, 43, 14, 11, 100100, 1, 9, 22 };
	unsigned bits = 0;
	for (unsigned number = 0; number < sizeof is / sizeof *is; number++)
		bits |= (unsigned)(is[number] != was[number]) << number;
	return bits;
}

static void *run(void *argument)
{
	for (;;) {
		look();
		scn_nap_us(100);
	}
	return argument;
}

static const char *scn_check(void)
{
	static const char *names[] = { "one_scaled", "two_scaled", "one_header", "two_header", "one_hidden",
				       "two_hidden", "counted", "returned", "caught", "area" };
	static char text[256];
	unsigned bits = look();
	*text = 0;
	for (unsigned number = 0; number < sizeof names / sizeof *names; number++)
		if (bits >> number & 1) {
			strcat(text, *text ? "+" : "");
			strcat(text, names[number]);
		}
	return *text ? text : "old";
}
#include "no_command.h"

int main(void)
{
	shapes = shapes_make();
	for (int number = 0; number < 3; number++)
		scn_thread(run, NULL);
	scn_serve();
}
