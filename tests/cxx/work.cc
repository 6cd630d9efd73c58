#include "lib.h"
#include <memory>
#include <string>
#include <vector>

namespace app {
struct Shelf {
	std::vector<std::string> labels;
	std::unique_ptr<lib::Scale> scale;
	int tare;
	int put(int load);
};

// 1: what the scale says is the load with the tare.
PATCHABLE int Shelf::put(int load)
{
	int said = scale->weigh(load);
	BARRIER();
	return said == load + tare ? 1 : 0;
}
}

extern "C" int work(int self, int round);
int work(int self, int round)
{
	static thread_local app::Shelf shelf{ {}, std::unique_ptr<lib::Scale>(lib::scale(self + 5)), self + 5 };
	shelf.labels.push_back("load " + std::to_string(round));
	if (shelf.labels.size() > 50)
		shelf.labels.clear();
	int thrown = 0;
	try {
		lib::limited(*shelf.scale, round);
	} catch (int load) {
		thrown = load == round;
	}
	if (thrown != (round % 7 == 3))
		return -1;
	return shelf.put(round);
}
