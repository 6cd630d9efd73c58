//#Compilers: gcc
//#Flags: -O2
//#Changed: f g
struct pair { long number; const char *name; };
void show(struct pair *);
int variable = 3;
/* gcc fills the array from a place in .data that has no name. */
void kept(void)
{
	struct pair all[] = {
		{0, "zero"},
		{1, "one"},
		{2, "two"},
		{3, "three"},
		{4, "four"},
		{5, "five"},
		{6, "six"},
		{7, "seven"},
		{8, "eight"},
		{9, "nine"},
		{10, "ten"},
		{11, "eleven"},
		{12, "twelve"},
		{13, "thirteen"},
		{14, "fourteen"},
		{15, "fifteen"},
		{16, "sixteen"},
		{17, "seventeen"},
		{18, "eighteen"},
		{19, "nineteen"},
		{20, "twenty"},
	};
	show(all);
}
int f(int x)
{
-|	return x + variable;
+|	return x - variable;
}
void g(void)
{
	struct pair all[] = {
		{0, "zero"},
		{1, "one"},
		{2, "two"},
		{3, "three"},
		{4, "four"},
		{5, "five"},
		{6, "six"},
		{7, "seven"},
		{8, "eight"},
		{9, "nine"},
		{10, "ten"},
		{11, "eleven"},
		{12, "twelve"},
		{13, "thirteen"},
		{14, "fourteen"},
		{15, "fifteen"},
		{16, "sixteen"},
		{17, "seventeen"},
		{18, "eighteen"},
		{19, "nineteen"},
		{20, "twenty"},
-|		{21, "one more"},
+|		{22, "one more"},
	};
	show(all);
}
