#include "patchable.h"

namespace lib {
struct Scale {
	virtual ~Scale();
	virtual int weigh(int load) const = 0;
};

template <typename Unit> struct Balance : Scale {
	Unit tare;
	explicit Balance(Unit tare) : tare(tare) {}
	int weigh(int load) const override;
};

Scale *scale(int tare);
// Throws an int when the load is too much.
int limited(const Scale &scale, int load);
}
