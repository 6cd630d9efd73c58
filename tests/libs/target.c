// A program that opens and closes libraries. Its arguments are their files.
//
//# target: gcc -O2 pie
//# mappings: own
//
// Commands: "open N" gives the address at which library N lies now; "close N"; "call N" says which version of its
// lib_answer() runs; "copy N" keeps the page of its code and gives its address, "paste N" puts it there again when the
// library is gone. "held N" has a task make the call that is in hold() and so in its old universe when a patch of that is
// loaded; "release" lets hold() return, and says which version is called next. "check" is about the program's own answer().
#include "scn.h"
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static const char *scn_check(void)
{
	return answer(40) == 41 ? "old" : "new";
}

static char **files;
static void *handles[10];

static const char *open_library(int number)
{
	static char text[64];
	struct link_map *map = handles[number] = dlopen(files[number], RTLD_NOW);
	if (!map)
		scn_broken("%s", dlerror());
	snprintf(text, sizeof text, "%#lx", (long)map->l_addr);
	return text;
}

static const char *call_library(int number)
{
	int (*function)(int) = (int (*)(int))dlsym(handles[number], "lib_answer");
	int *constant = dlsym(handles[number], "lib_constant");
	if (!function || !constant)
		scn_broken("%s", dlerror());
	int got = function(1) - 1 - *constant;
	if (got != 0 && got != 1000)
		scn_broken("lib_answer() of library %d is wrong by %d", number, got);
	return got ? "new" : "old";
}

static sem_t asked, answered;
static atomic_int request, hold_version;
static const char *held_answer;

static void take(sem_t *sem)
{
	while (sem_wait(sem))
		if (errno != EINTR)
			scn_broken("sem_wait: %m");
}

void hold_serve(int version)
{
	atomic_store(&hold_version, version);
	for (;;) {
		take(&asked);
		int number = atomic_load(&request);
		if (!number)
			return;
		held_answer = call_library(number);
		sem_post(&answered);
	}
}

PATCHABLE void hold(void)
{
	hold_serve(1);
	BARRIER();
}

static void *holder(void *argument)
{
	for (;;)
		hold();
	return argument;
}

static const char *held(int number)
{
	atomic_store(&request, number);
	sem_post(&asked);
	take(&answered);
	return held_answer;
}

static const char *release(void)
{
	atomic_store(&request, 0);
	atomic_store(&hold_version, 0);
	sem_post(&asked);
	while (!atomic_load(&hold_version))
		scn_nap_us(100);
	return atomic_load(&hold_version) == 1 ? "old" : "new";
}

static unsigned char kept[4096];
static void *kept_place;

static const char *copy(int number)
{
	static char text[64];
	kept_place = (void *)((uintptr_t)dlsym(handles[number], "lib_answer") & -4096);
	memcpy(kept, kept_place, sizeof kept);
	snprintf(text, sizeof text, "%p", kept_place);
	return text;
}

static const char *paste(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	if (mmap(kept_place, sizeof kept, PROT_READ | PROT_WRITE, flags, -1, 0) != kept_place)
		scn_broken("mmap: %m");
	memcpy(kept_place, kept, sizeof kept);
	if (mprotect(kept_place, sizeof kept, PROT_READ | PROT_EXEC))
		scn_broken("mprotect: %m");
	return "ok";
}

static const char *scn_command(const char *line)
{
	int number = line[strlen(line) - 1] - '0';
	if (!strcmp(line, "release"))
		return release();
	if (number < 1 || number > 2)
		return "which library?";
	if (!strncmp(line, "open", 4))
		return open_library(number);
	if (!strncmp(line, "call", 4))
		return call_library(number);
	if (!strncmp(line, "held", 4))
		return held(number);
	if (!strncmp(line, "copy", 4))
		return copy(number);
	if (!strncmp(line, "paste", 5))
		return paste();
	if (dlclose(handles[number]))
		scn_broken("%s", dlerror());
	return "ok";
}

int main(int count, char **values)
{
	(void)count;
	files = values;
	scn_thread(holder, NULL);
	while (!atomic_load(&hold_version))
		scn_nap_us(100);
	scn_serve();
}
