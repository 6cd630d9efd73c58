#ifndef PATCHABLE_H
#define PATCHABLE_H
// A function that a patch replaces: never inlined, cloned, or known to its callers beyond its type. The barrier keeps
// clang, which has no noipa, from finding out that the body is pure.
#if defined(__clang__)
#define PATCHABLE __attribute__((noinline, used))
#else
#define PATCHABLE __attribute__((noinline, noipa, used))
#endif
#define BARRIER() __asm__ volatile("" ::: "memory")
#endif
