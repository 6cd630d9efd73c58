//#Flags: -O2
//#Flags: -O2 -fPIC
//#Flags: -O2 -fno-pic
//#Changed: g
int one(int), two(int), three(int), four(int), five(int);
__attribute__((noipa)) int f(int x)
{
	switch (x) { case 0: return one(1); case 1: return two(2) + 1; case 2: return three(x) * 2;
	case 3: return four(7) ^ 1; case 4: return five(1) - 3; case 5: return two(9) & 3; }
	return 0;
}
__attribute__((noipa)) int g(int x)
{
	switch (x) { case 0: return one(1); case 1: return two(2) + 1; case 2: return three(x) * 2;
-|	case 3: return four(7) ^ 1; case 4: return five(1) - 3; case 5: return two(9) & 3; }
+|	case 4: return four(7) ^ 1; case 3: return five(1) - 3; case 5: return two(9) & 3; }
	return 0;
}
