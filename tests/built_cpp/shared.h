#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

// Both files have an instance, of which the linker keeps one.
template <typename T> __attribute__((noinline)) T scaled(T x)
{
	return x * T(3);
}

inline int in_header(int x)
{
	return x * 7 + 1;
}

// Its variable is one for the whole program.
inline __attribute__((noinline)) int counted(int by)
{
	static int sum = 100;
	sum += by;
	return sum - by;
}

struct Job {
	int cost;
	int left;
};

class Shape {
public:
	virtual ~Shape() = default;
	virtual int area() const = 0;
	virtual int edges() const { return 1; }
};

Shape *make_square(int side);
Shape *make_circle(int radius);
