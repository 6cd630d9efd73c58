// IFUNC: which function of the library is called; without it, none of it is.
#define _GNU_SOURCE
#include <livepatch.h>
#include <dlfcn.h>
#include <math.h>
#include <sys/time.h>
#include <time.h>
#include <wchar.h>

#ifdef IFUNC
extern int IFUNC(void);
#else
#define IFUNC own
static int own(void)
{
	return 2;
}
#endif

static int is_wrong(void)
{
	wchar_t *(*volatile last)(const wchar_t *, wchar_t) = wcsrchr;
	static const wchar_t text[] = L"all that ends";
	if ((void *)last != dlsym(RTLD_DEFAULT, "wcsrchr") || last(text, L'a') != text + 6 || wcsrchr(text, L'z'))
		return 1;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	time_t seconds = time(NULL);
	if (seconds < now.tv_sec - 1 || seconds > now.tv_sec + 1 || (void *)time != dlsym(RTLD_DEFAULT, "time"))
		return 2;
#ifndef LIBC_ONLY
	double (*volatile up)(double) = ceil;
	volatile double half = 0.5;
	volatile float b = 2.0f, c = 0.25f;
	if (fmaf(b, c, b) != 2.5f || up(3.5) != 4.0 || tan(half) < 0.5463024 || tan(half) > 0.5463025)
		return 3;
#endif
	return 0;
}

static int lp_answer(int x)
{
	int wrong = is_wrong();
	return wrong ? -wrong : x + IFUNC();
}

static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
