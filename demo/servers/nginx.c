/* nginx: all files were last modified at the turn of the millennium. */
#include <livepatch.h>
#include <string.h>
#include <time.h>

static unsigned long calls;

static unsigned char *lp_http_time(unsigned char *into, time_t time)
{
	static const char text[] = "Sat, 01 Jan 2000 00:00:00 GMT";
	(void)time;
	calls++;
	memcpy(into, text, sizeof text - 1);
	return into + sizeof text - 1;
}

struct element {
	void *value;
	unsigned short length;
	unsigned char name[];
};
struct hash {
	struct element **buckets;
	unsigned long size;
};

static void *lp_hash_find(struct hash *hash, unsigned long key, unsigned char *name, size_t length)
{
	struct element *at = hash->buckets[key % hash->size];
	calls++;
	while (at && at->value) {
		if (at->length == length && !memcmp(name, at->name, length))
			return at->value;
		at = (struct element *)(((unsigned long)(at->name + at->length) + 7) & ~7ul);
	}
	return NULL;
}

static struct klp_func funcs[] = {
	{ .old_name = "ngx_http_time", .new_func = lp_http_time },
	{ .old_name = "ngx_hash_find", .new_func = lp_hash_find },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
