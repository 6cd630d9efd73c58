#include "shapes.h"
#include <cstdio>

namespace {
struct Circle : Shape {
	double radius;
	explicit Circle(double r) : radius(r) {}
	double area() const override { return radius * radius * 3.14159; }
	const char *name() const override { return "circle"; }
};
int hidden(int x) { return x * 9 - counted<int>(x); }
}

const Shape *circle(double r)
{
	static Circle one(r + hidden(2));
	std::printf("%f\n", describe(one));
	return &one;
}
