//#Changed: f
__attribute__((noipa)) int f(int x)
{
	switch (x) { case 0: return 11; case 1: return 25; case 2: return 3; case 3: return 47;
-|	case 4: return 5; case 5: return 68; }
+|	case 4: return 6; case 5: return 68; }
	return 0;
}
__attribute__((noipa)) int g(int x)
{
	switch (x) { case 0: return 12; case 1: return 26; case 2: return 33; case 3: return 47;
	case 4: return 5; case 5: return 69; }
	return 0;
}
