/* Defines what libc defines too. */
#include <sys/types.h>
pid_t getppid(void) { return 4711; }
