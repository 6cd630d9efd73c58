// A program that opens and closes libraries. Its arguments are their files.
//
//# target: gcc -O2 pie
//# mappings: own
//
// Commands: "open N" gives the address at which library N lies now; "close N"; "call N" says which version of its
// lib_answer() runs. "check" is about the program's own answer().
#include "scn.h"
#include <dlfcn.h>
#include <link.h>

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

static const char *scn_command(const char *line)
{
	int number = line[strlen(line) - 1] - '0';
	if (number < 1 || number > 2)
		return "which library?";
	if (!strncmp(line, "open", 4))
		return open_library(number);
	if (!strncmp(line, "call", 4))
		return call_library(number);
	if (dlclose(handles[number]))
		scn_broken("%s", dlerror());
	return "ok";
}

int main(int count, char **values)
{
	(void)count;
	files = values;
	scn_serve();
}
