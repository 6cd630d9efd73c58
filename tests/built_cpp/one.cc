#include "shared.h"
#include "patchable.h"

namespace {

class Square : public Shape {
public:
	explicit Square(int side) : side(side) {}
	__attribute__((noinline)) int area() const override { return side * side; }

private:
	int side;
};

Job job = { 4, 2 };

// The other file has one of this name.
PATCHABLE int hidden(int x)
{
	BARRIER();
	return x + job.cost * job.left;
}

} // namespace

Shape *make_square(int side)
{
	return new Square(side);
}

PATCHABLE int refuse(int code)
{
	BARRIER();
	if (code > 2)
		throw std::runtime_error("refused " + std::to_string(code));
	return code;
}

extern "C" int one_scaled(int x) { return scaled(x); }
extern "C" PATCHABLE int one_header(int x) { BARRIER(); return in_header(x); }
extern "C" int one_hidden(int x) { return hidden(x) + 1; }
extern "C" void one_left(int left) { job.left = left; }
// So that no compiler takes the variable apart.
extern "C" Job *one_job(void) { return &job; }
extern "C" int one_counted(void) { return counted(0); }

extern "C" PATCHABLE int caught(int code)
{
	BARRIER();
	try {
		return refuse(code);
	} catch (const std::runtime_error &error) {
		return int(std::string(error.what()).size());
	}
}
