#include "lib.h"

namespace lib {
Scale::~Scale() {}

template <typename Unit> PATCHABLE int Balance<Unit>::weigh(int load) const
{
	BARRIER();
	return load + tare;
}

PATCHABLE Scale *scale(int tare)
{
	return new Balance<short>(tare);
}

PATCHABLE int limited(const Scale &scale, int load)
{
	if (load % 7 == 3)
		throw load;
	return scale.weigh(load);
}
}
