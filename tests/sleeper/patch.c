// Version 2 of job() and tick(), and of spare() with -DSPARE.
#include <livepatch.h>
#include <stddef.h>

extern void job_entered(int version);
extern void job_sleep(void);
extern void job_left(int version);

static long lp_job(long rounds)
{
	job_entered(2);
	job_sleep();
	job_left(2);
	return rounds + 1;
}

static int lp_tick(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}

#ifdef SPARE
static int lp_spare(int x)
{
	__asm__ volatile("" ::: "memory");
	return x + 2;
}
#endif

static struct klp_func funcs[] = {
#ifdef SPARE
	{ .old_name = "spare", .new_func = lp_spare },
#endif
	{ .old_name = "job", .new_func = lp_job },
	{ .old_name = "tick", .new_func = lp_tick },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
