//#Changed: f
//#Data: new limit
//#Data: new table
//#Defined: limit table
+|int limit = 7;
+|static int table[64];
int f(int x)
{
+|	if (x > limit) table[x & 63]++;
	return x + 1;
}
+|int *all(void) { return table; }
//#New: all
