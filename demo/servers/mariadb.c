/* MariaDB: the length of a string in an answer, and (C++) the date of a day. */
#include <livepatch.h>
#include <string.h>

static unsigned long calls;

static unsigned char *put(unsigned char *into, int mark, unsigned long length, int bytes)
{
	*into = mark;
	memcpy(into + 1, &length, bytes);
	return into + 1 + bytes;
}

static unsigned char *lp_net_store_length(unsigned char *into, unsigned long length)
{
	calls++;
	if (length < 251) {
		*into = length;
		return into + 1;
	}
	return length < 65536 ? put(into, 252, length, 2) :
	       length < 16777216 ? put(into, 253, length, 3) : put(into, 254, length, 8);
}

/* get_date_from_daynr(long, unsigned *, unsigned *, unsigned *) */
static int lp_date(long day_number, unsigned *year, unsigned *month, unsigned *day)
{
	(void)day_number;
	calls++;
	*year = 2000;
	*month = *day = 1;
	return 0;
}

static struct klp_func funcs[] = {
	{ .old_name = "net_store_length", .new_func = lp_net_store_length },
	{ .old_name = "_Z19get_date_from_daynrlPjS_S_", .new_func = lp_date },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
