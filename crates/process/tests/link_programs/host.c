/*
 * A program that helps to test the linker: it maps and runs what it is told to.
 *   map BASE SIZE FILE    maps the file, writable and executable, at the address
 *   call ADDRESS          calls void f(char *out, size_t size) there, on the main thread
 *   thread ADDRESS        the same on a new thread
 *   open FILE             dlopen
 *   own                   what the program itself says
 *   own-thread            the same on a new thread (which gets the stack of the last one: glibc keeps it)
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>

static int static_counter = 41;
int global_counter = 42;
const char *const names[4] = { "zero", "one", "two!", "three" };
static __thread int tls_static = 5;
__thread int tls_global = 6;
__thread char tls_aligned[64] __attribute__((aligned(64))) = "aligned";
int global_function(int);
static __attribute__((noinline)) int static_function(int);

#include "checks.h"

static __attribute__((noinline)) int static_function(int x) { __asm__ volatile(""); return x * 100 + static_counter; }
__attribute__((noinline)) int global_function(int x) { __asm__ volatile(""); return x + 1000 + tls_global; }

#ifdef COROUTINES
#include <ucontext.h>
int (*volatile use_swapcontext)(ucontext_t *, const ucontext_t *) = swapcontext;
#endif

__attribute__((noinline, cold)) static void complain(int x) { fprintf(stderr, "unexpected %d\n", x); abort(); }
__attribute__((noinline)) int splits(int x) { if (__builtin_expect(x > 1000, 0)) complain(x + global_counter); return x; }
int (*volatile use_splits)(int) = splits;

static int twin(int x) { __asm__ volatile(""); return x; }
int (*volatile use_twin)(int) = twin;

__attribute__((noinline)) void probe(char *out, size_t size) { checks(out, size); }

static void *run(void *function)
{
	static char out[8192];
	tls_static = 5;
	tls_global = 6;
	((void (*)(char *, size_t))function)(out, sizeof out);
	fputs(out, stdout);
	return NULL;
}

int main(void)
{
	char line[4096], file[3000];
	unsigned long base, size;
	pthread_t thread;

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "map %lx %lx %2999s", &base, &size, file) == 3) {
			int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
			char *at = mmap((void *)base, size, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0);
			int fd = open(file, O_RDONLY);
			long total = 0, got = 0;
			if (at == (char *)base && fd >= 0)
				while ((got = read(fd, at + total, size - (unsigned long)total)) > 0)
					total += got;
			printf("%s\n", at == (char *)base && fd >= 0 && got == 0 ? "mapped" : "failed");
		} else if (sscanf(line, "unmap %lx %lx", &base, &size) == 2) {
			munmap((void *)base, size);
			puts("unmapped");
		} else if (sscanf(line, "open %2999s", file) == 1) {
			puts(dlopen(file, RTLD_NOW) ? "opened" : dlerror());
		} else if (sscanf(line, "call %lx", &base) == 1) {
			run((void *)base);
		} else if (sscanf(line, "thread %lx", &base) == 1) {
			pthread_create(&thread, NULL, run, (void *)base);
			pthread_join(thread, NULL);
		} else if (!strncmp(line, "own-thread", 10)) {
			pthread_create(&thread, NULL, run, (void *)probe);
			pthread_join(thread, NULL);
		} else if (!strncmp(line, "own", 3)) {
			run((void *)probe);
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
