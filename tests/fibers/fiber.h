// What the program and its patch know of a fiber, and how the patched function suspends one.
#include <setjmp.h>

struct fiber {
	// Where it is suspended, and where its task goes on meanwhile: stack pointers, or jmp_bufs.
	void *self, *back;
	int wants_inside, before, result, again;
};

extern void leave(struct fiber *fiber);

#define JUMP_OUT(fiber) \
	do { \
		if (!sigsetjmp(*(sigjmp_buf *)(fiber)->self, 0)) \
			siglongjmp(*(sigjmp_buf *)(fiber)->back, 1); \
	} while (0)

#if defined DIRECT
#define LEAVE(fiber) JUMP_OUT(fiber)
#else
#define LEAVE(fiber) leave(fiber)
#endif
