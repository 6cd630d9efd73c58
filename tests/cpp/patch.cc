#include <livepatch.h>

#include "work.h"

// A class of the patch's own.
struct Square : Shape {
	int side;
	explicit Square(int side) : side(side) {}
	int area() const override;
};

int Square::area() const
{
	return side * side / 2;
}

// A static local variable with a destructor, which runs when the program ends.
struct Log {
	std::vector<std::string> lines;
	~Log()
	{
		if (lines.empty() || lines[0] != "a line that is too long for a string without memory of its own")
			__builtin_abort();
	}
};

static Log &log(void)
{
	static Log log;
	return log;
}

static Shape *lp_make(int kind)
{
	log().lines.emplace_back("a line that is too long for a string without memory of its own");
	return kind ? new Square(2) : nullptr;
}

static int lp_count(Box<int> *box)
{
	counter() += 2;
	Box<int> *kept = new Box<int>(box->get());
	// The same type, by its address too, and the same virtual functions.
	if (&typeid(*box) != &typeid(*kept) || typeid(*kept) != typeid(Box<int>))
		return 0;
	return dynamic_cast<Box<int> *>(kept) ? 2 : 0;
}

static struct klp_func funcs[] = {
	{ "_Z4makei", (void *)lp_make, 0, false },
	{ "_Z5countP3BoxIiE", (void *)lp_count, 0, false },
	{ }
};
static struct klp_object objs[] = { { NULL, funcs, { } }, { } };
static struct klp_patch patch = { objs, NULL, false, false };
KLP_PATCH(patch);
