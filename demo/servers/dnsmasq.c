/* dnsmasq: how names are compared. */
#include <livepatch.h>

static unsigned long calls;

static unsigned lower(unsigned char letter)
{
	return letter >= 'A' && letter <= 'Z' ? letter + 32u : letter;
}

static int lp_hostname_isequal(const char *one, const char *other)
{
	calls++;
	for (;; one++, other++) {
		if (lower(*one) != lower(*other))
			return 0;
		if (!*one)
			return 1;
	}
}

static struct klp_func funcs[] = { { .old_name = "hostname_isequal", .new_func = lp_hostname_isequal }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
