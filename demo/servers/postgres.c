/* PostgreSQL: addition, and what the version is said to be. */
#include <livepatch.h>
#include <stdbool.h>

struct value {
	unsigned long datum;
	bool null;
};
struct call {
	void *function, *context, *result;
	unsigned collation;
	bool null;
	short count;
	struct value arguments[];
};

extern bool errstart(int level, const char *domain);
extern int errcode(int state), errmsg(const char *format, ...);
extern void errfinish(const char *file, int line, const char *function);
extern void *cstring_to_text(const char *text);

static unsigned long calls;

static unsigned long lp_int4pl(struct call *call)
{
	int sum;
	calls++;
	if (__builtin_add_overflow((int)call->arguments[0].datum, (int)call->arguments[1].datum, &sum)) {
		enum { ERROR = 21, OUT_OF_RANGE = 50331778 };
		/* errfinish() does not come back: it jumps to where the query began. */
		if (errstart(ERROR, NULL)) {
			errcode(OUT_OF_RANGE);
			errmsg("integer out of range, says the patch");
			errfinish("patch.c", __LINE__, "int4pl");
		}
	}
	return (unsigned long)(long)sum;
}

static unsigned long lp_version(struct call *call)
{
	(void)call;
	calls++;
	return (unsigned long)cstring_to_text("PostgreSQL with a patch");
}

static struct klp_func funcs[] = {
	{ .old_name = "int4pl", .new_func = lp_int4pl },
	{ .old_name = "pgsql_version", .new_func = lp_version },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
