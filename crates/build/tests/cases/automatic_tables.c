// What automatic arrays with addresses in them begin with lies in .data, without a name.
//#Compilers: gcc clang
//#Flags: -O2 -fPIE
//#Flags: -O2
//#Changed: names changed
struct flag { unsigned long bit; const char *name; };
void show(struct flag *flags, const char **names);

void flags(void)
{
	struct flag all[] = { { 1, "write" }, { 2, "read only" }, { 4, "deny" }, { 8, "admin" }, { 16, "loading" },
		{ 32, "stale" }, { 64, "fast" }, { 128, "none" }, { 256, "all" }, { 512, "more" } };
	show(all, 0);
}

void names(void)
{
	const char *all[] = { "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
-|		"eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen" };
+|		"eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "twenty" };
	show(0, all);
}

void same(void)
{
	const char *all[] = { "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r",
		"s", "t", "u", "v", "w", "x", "y", "z" };
	show(0, all);
}

int changed(int x)
{
-|	return x + 1;
+|	return x + 2;
}
