#include "shapes.h"
#include <cstdio>
#include <exception>
#include <new>

namespace {
struct Square : Shape {
	double side;
	explicit Square(double s) : side(s) {}
	double area() const override { return side * side; }
	const char *name() const override { return "square"; }
};
int hidden(int x) { return x * 5 + counted<int>(x); }
}

int main(int argc, char **)
{
	Square square(argc);
	const Shape *shapes[] = { &square, circle(argc) };
	double sum = 0;
	try {
		for (const Shape *shape : shapes) {
			sum += describe(*shape);
			if (argc > 3)
				throw std::bad_alloc();
		}
	} catch (const std::exception &e) {
		std::printf("%s\n", e.what());
	}
	std::printf("%f %d %ld %d\n", sum, hidden(argc), counted<long>(argc), instances());
	return 0;
}
