#include <livepatch.h>

#include <iostream>

static int lp_answer(int x)
{
	std::cout << x << "\n";
	return x + 2;
}

static struct klp_func funcs[] = { { "answer", (void *)lp_answer, 0, false }, { } };
static struct klp_object objs[] = { { NULL, funcs, { } }, { } };
static struct klp_patch patch = { objs, NULL, false, false };
KLP_PATCH(patch);
