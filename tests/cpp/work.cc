#include "patchable.h"
#include "work.h"

int start(void)
{
	return 1;
}

Shape::~Shape() {}

int Shape::area() const
{
	return 1;
}

PATCHABLE Shape *make(int kind)
{
	BARRIER();
	return kind ? new Shape : nullptr;
}

// Says what it has counted.
PATCHABLE int count(Box<int> *box)
{
	BARRIER();
	counter() += 1;
	return box->get() - 4;
}

// 1: old, 2: new, or what is wrong.
extern "C" int round_trip(void)
{
	std::unique_ptr<Shape> shape(make(1));
	int version = shape->area();
	int counted = counter(), made = Box<int>::made;
	Box<int> box(5);
	if (count(&box) != version)
		return 10;
	if (counter() != counted + version)
		return 11;
	// The new one makes a box and keeps it.
	if (Box<int>::made != made + version)
		return 12;
	return version;
}
