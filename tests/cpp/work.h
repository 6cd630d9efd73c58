// What the program and its patch share: all that C++ puts into every file that uses it.
#include <memory>
#include <string>
#include <typeinfo>
#include <vector>

int start(void);

// There is one, whoever counts.
inline int &counter()
{
	static int count = start();
	return count;
}

template <typename Item> struct Box {
	static int made;
	Item item;
	explicit Box(Item item) : item(item) { made++; }
	virtual ~Box() { made--; }
	virtual Item get() const { return item; }
};
template <typename Item> int Box<Item>::made = 100;

struct Shape {
	virtual ~Shape();
	virtual int area() const;
};
