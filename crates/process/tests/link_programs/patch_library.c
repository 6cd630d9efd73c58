/* The library's own checks, compiled into a patch of the library. */
#include <stdio.h>
#include <string.h>
#include <livepatch.h>

extern int lib_data, lib_static;
extern __thread long lib_tls, lib_tls_static;
int lib_function(int x);

static void lp_probe(char *out, size_t size)
{
	lib_tls_static += 1;
	snprintf(out, size, "lib %p %p %p %p %d %zu\n", (void *)&lib_data, (void *)&lib_tls, (void *)&lib_tls_static,
		 (void *)&lib_static, lib_function(1), strlen("four"));
}

static struct klp_func funcs[] = { { .old_name = "lib_probe", .new_func = lp_probe }, { } };
static struct klp_object objs[] = { { .name = "liblinktest.so.1", .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
