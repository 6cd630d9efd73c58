// One of the tasks uses %gs for itself.
//# load: refuse gs
#include "answer.h"
#include <asm/prctl.h>

static int block_of_its_own[16];
static atomic_int set;

static void *user_of_gs(void *argument)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, block_of_its_own))
		scn_broken("arch_prctl: %m");
	atomic_store(&set, 1);
	for (;;)
		pause();
	return argument;
}

int main(void)
{
	scn_thread(user_of_gs, NULL);
	while (!atomic_load(&set))
		scn_nap_us(100);
	scn_serve();
}
