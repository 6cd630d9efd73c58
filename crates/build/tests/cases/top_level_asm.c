//#Refused: assembly .text
//#Changed:
-|asm(".text\nsecret: mov $1, %eax\nret\n");
+|asm(".text\nsecret: mov $2, %eax\nret\n");
int f(int x) { return x + 1; }
