/* What both the program and its patch can say about the program: compiled into each, the answers must be the same. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern int global_counter;
extern const char *const names[4];
extern __thread int tls_global;
extern __thread char tls_aligned[64];
int global_function(int);
#ifdef PATCH
extern int static_counter;
extern __thread int tls_static;
int static_function(int);
#endif

#ifndef NO_LIBRARY
extern int lib_data;
extern __thread long lib_tls;
int lib_function(int);
#endif

extern int missing_function(void) __attribute__((weak));
extern char **environ;

static int choose(int x)
{
	switch (x) {
	case 0: return global_counter;
	case 1: return static_function(x);
	case 2: return (int)strlen(names[x]);
	case 3: return 77;
	case 4: return global_function(9);
	case 5: return getpid();
	default: return -1;
	}
}

static void put(char **out, char *end, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	*out += vsnprintf(*out, (size_t)(end - *out), format, args);
	va_end(args);
}

static void checks(char *out, size_t size)
{
	char *end = out + size;
	int (*volatile by_pointer)(int) = static_function;
	char copy[16];

	tls_static += 1;
	tls_global += 2;
	memcpy(copy, "copied text", 12);
	put(&out, end, "static %p %d %d %d\n", (void *)&static_counter, static_counter, static_function(3), by_pointer(4));
	put(&out, end, "global %p %d %d\n", (void *)&global_counter, global_counter, global_function(5));
	put(&out, end, "tls %p %p %p\n", (void *)&tls_static, (void *)&tls_global, (void *)tls_aligned);
	put(&out, end, "libc %p %p %p %p %s\n", (void *)&errno, (void *)stderr, (void *)&environ, (void *)environ, copy);
	for (int i = 0; i < 7; i++)
		put(&out, end, "choose %d %d\n", i, choose(i));
	put(&out, end, "format %s %.3f %lld\n", names[1], sqrt((double)global_counter), 1LL << 40);
	put(&out, end, "missing %d %p\n", missing_function ? missing_function() : 0, (void *)missing_function);
#ifdef ADDRESSES
	put(&out, end, "address %p %p %p %p\n", (void *)static_function, (void *)global_function, (void *)memcpy, (void *)puts);
#endif
#ifndef NO_LIBRARY
	lib_tls += 1;
	put(&out, end, "lib %p %d %d %p\n", (void *)&lib_data, lib_data, lib_function(6), (void *)&lib_tls);
#endif
}
