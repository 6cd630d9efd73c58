#include "shared.h"
#include "patchable.h"

namespace {

class Circle : public Shape {
public:
	explicit Circle(int radius) : radius(radius) {}
	int area() const override { return 3 * radius * radius; }

private:
	int radius;
};

PATCHABLE int hidden(int x)
{
	BARRIER();
	return x * 2;
}

} // namespace

Shape *make_circle(int radius)
{
	return new Circle(radius);
}

extern "C" int two_scaled(int x) { return scaled(x + 1); }
extern "C" PATCHABLE int two_header(int x) { BARRIER(); return in_header(x + 1); }
extern "C" int two_hidden(int x) { return hidden(x) + 1; }
extern "C" int two_counted(void) { return counted(0); }

extern "C" void *shapes_make(void)
{
	return new Shape *[2] { make_square(3), make_circle(2) };
}

extern "C" int shapes_area(void *shapes)
{
	Shape **all = static_cast<Shape **>(shapes);
	return all[0]->area() + all[1]->area() + all[0]->edges();
}
