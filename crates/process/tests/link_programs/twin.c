/* A second static `twin`, and two things that are static in the library too. */
static int twin(int x) { __asm__ volatile(""); return -x; }
int (*volatile use_other_twin)(int) = twin;
static int lib_static = 11;
int *volatile use_lib_static = &lib_static;
