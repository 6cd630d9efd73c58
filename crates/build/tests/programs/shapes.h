#pragma once
#include <cstdio>
struct Shape {
	virtual ~Shape() {}
	virtual double area() const = 0;
	virtual const char *name() const { return "shape"; }
};
const Shape *circle(double r);
inline int &instances() { static int count = 1; return count; }
inline __attribute__((noinline)) double describe(const Shape &s)
{
	std::printf("%s\n", s.name());
	instances()++;
	return s.area();
}
template <typename T> __attribute__((noinline)) T counted(T x)
{
	static T total = 3;
	total += x;
	return total * 2 + instances();
}
