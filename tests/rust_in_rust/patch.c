#include <livepatch.h>

extern void lp_job(void);

// OLD_NAME: the mangled name, which the compiler chooses.
static struct klp_func funcs[] = { { .old_name = OLD_NAME, .new_func = lp_job }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
