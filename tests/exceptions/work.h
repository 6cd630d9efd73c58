// What the program and its patch share.
#include <stdexcept>
#include <string>

struct Failure {
	int code;
	explicit Failure(int code) : code(code) {}
	virtual ~Failure() = default;
};

struct Trouble : Failure {
	explicit Trouble(int code) : Failure(code) {}
};

// Counts what is destroyed on the way.
struct Guard {
	int &count;
	~Guard() { count++; }
};
