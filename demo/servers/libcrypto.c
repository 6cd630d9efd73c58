/* Functions of libcrypto's that each handshake calls. */
#include <livepatch.h>
#include <string.h>

extern void *CRYPTO_malloc(size_t size, const char *file, int line);

static unsigned long calls;

static void *lp_zalloc(size_t size, const char *file, int line)
{
	void *got = CRYPTO_malloc(size, file, line);
	calls++;
	if (got)
		memset(got, 0, size);
	return got;
}

static void lp_cleanse(void *start, size_t size)
{
	volatile char *at = start;
	calls++;
	while (size--)
		*at++ = 0;
}

static int lp_memcmp(const void *one, const void *other, size_t size)
{
	const volatile unsigned char *a = one, *b = other;
	unsigned char differ = 0;
	calls++;
	while (size--)
		differ |= *a++ ^ *b++;
	return differ;
}

static struct klp_func funcs[] = {
	{ .old_name = "CRYPTO_zalloc", .new_func = lp_zalloc },
	{ .old_name = "OPENSSL_cleanse", .new_func = lp_cleanse },
	{ .old_name = "CRYPTO_memcmp", .new_func = lp_memcmp },
	{ }
};
static struct klp_object objs[] = { { .name = "libcrypto.so.3", .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
