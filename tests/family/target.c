// Has a child now and then, which calls a replaced function and ends. Built twice, it is two unrelated programs with the
// same layout.
//
//# target: gcc -O2 pie
#include "answer.h"
#include <sys/wait.h>

static void *parent(void *argument)
{
	for (;;) {
		pid_t child = fork();
		if (child == 0)
			_exit(answer(40) - 40);
		int status;
		if (child < 0 || waitpid(child, &status, 0) != child)
			scn_broken("a child: %m");
		if (!WIFEXITED(status) || (WEXITSTATUS(status) != 1 && WEXITSTATUS(status) != 2))
			scn_broken("a child ended with %#x", status);
		scn_nap_us(3000);
	}
	return argument;
}

#ifdef SECOND
const char second[] = "the second program";
#endif

int main(void)
{
	scn_thread(parent, NULL);
	scn_serve();
}
