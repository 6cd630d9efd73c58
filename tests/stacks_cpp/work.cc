#include "patchable.h"

extern "C" {
void wait_here(void);
void set_version(int now);
void work(void);
}

namespace app {
template <typename Item> struct Queue {
	Item next;
	int hold(long rounds);

	inline __attribute__((always_inline)) int turn()
	{
		int result = hold(next);
		BARRIER();
		return result;
	}
};

template <typename Item> PATCHABLE int Queue<Item>::hold(long rounds)
{
	__asm__ volatile("" : "+b"(rounds));
	wait_here();
	BARRIER();
	return rounds + 1;
}

namespace {
PATCHABLE void drain(Queue<int> &queue)
{
	for (;;)
		set_version(queue.turn());
}
}
}

void work(void)
{
	app::Queue<int> queue{0};
	app::drain(queue);
	BARRIER();
}
