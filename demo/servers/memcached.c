/* memcached: how the numbers of a command are read. */
#include <livepatch.h>
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

static unsigned long calls;

static bool ends(const char *start, const char *end)
{
	return errno != ERANGE && end != start && (!*end || isspace((unsigned char)*end));
}

static bool lp_strtoul(const char *text, uint32_t *into)
{
	char *end;
	calls++;
	errno = 0;
	*into = 0;
	unsigned long number = strtoul(text, &end, 10);
	if (!ends(text, end) || (long)number < 0)
		return false;
	*into = number;
	return true;
}

static bool lp_strtol(const char *text, int32_t *into)
{
	char *end;
	calls++;
	errno = 0;
	*into = 0;
	long number = strtol(text, &end, 10);
	if (!ends(text, end))
		return false;
	*into = number;
	return true;
}

static struct klp_func funcs[] = {
	{ .old_name = "safe_strtoul", .new_func = lp_strtoul },
	{ .old_name = "safe_strtol", .new_func = lp_strtol },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
