/* A shared library with a thread-local variable, data, and a function that says where its own things are. */
#include <stdio.h>
#include <stddef.h>
#include <string.h>

int lib_data = 7;
__thread long lib_tls = 8;
static __thread long lib_tls_static = 9;
static int lib_static = 10;

__attribute__((noinline)) int lib_function(int x) { __asm__ volatile(""); return x + lib_data + lib_static; }

__attribute__((noinline)) void lib_probe(char *out, size_t size)
{
	lib_tls_static += 1;
	snprintf(out, size, "lib %p %p %p %p %d %zu\n", (void *)&lib_data, (void *)&lib_tls, (void *)&lib_tls_static,
		 (void *)&lib_static, lib_function(1), strlen("four"));
}
