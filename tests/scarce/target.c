// A program that gets no more memory: by its own limit (RLIMIT_DATA), or from a machine that promises no more than it has
// (vm.overcommit_memory). It has loaded the unwinder, which needs memory for a patch as well.
//
//# target: gcc -O2 pie
//# link: -Wl,--no-as-needed -lgcc_s
//
// Commands: "limit N": N KiB of data more than now (RLIMIT_DATA); "unlimit"; "weaken" gives up what entitles root to the
// last memory; "fill" takes what there is, and "empty" gives that back.
#include "scn.h"
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/resource.h>

PATCHABLE int answer(int x)
{
	BARRIER();
	return x + 1;
}

static const char *scn_check(void)
{
	int got = answer(1);
	return got == 2 ? "old" : got == 3 ? "new" : "wrong";
}

static const char *limit(long room)
{
	char text[256];
	FILE *file = fopen("/proc/self/status", "r");
	long used = -1;
	while (file && fgets(text, sizeof text, file))
		sscanf(text, "VmData: %ld", &used);
	if (file)
		fclose(file);
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
	if (room >= 0)
		limit.rlim_cur = (used + room) * 1024;
	return used < 0 || setrlimit(RLIMIT_DATA, &limit) ? strerror(errno) : "ok";
}

static const char *weaken(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	if (syscall(SYS_capget, &head, data))
		return strerror(errno);
	data[0].effective &= ~(1u << CAP_SYS_ADMIN);
	data[0].permitted &= ~(1u << CAP_SYS_ADMIN);
	return syscall(SYS_capset, &head, data) ? strerror(errno) : "ok";
}

// Nothing of it is touched: what counts is what may be.
static struct {
	void *at;
	size_t size;
} pieces[64];

static const char *fill(void)
{
	static char text[64];
	size_t all = 0, number = 0;
	for (size_t size = 64 << 20; size >= 4096; size /= 2)
		for (;;) {
			void *got = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (got == MAP_FAILED || number >= 64)
				break;
			pieces[number].at = got;
			pieces[number++].size = size;
			all += size;
		}
	snprintf(text, sizeof text, "%zu KiB", all >> 10);
	return text;
}

static const char *empty(void)
{
	for (int i = 0; i < 64 && pieces[i].size; i++) {
		if (munmap(pieces[i].at, pieces[i].size))
			return strerror(errno);
		pieces[i].size = 0;
	}
	return "ok";
}

static const char *scn_command(const char *line)
{
	if (!strncmp(line, "limit ", 6))
		return limit(atol(line + 6));
	if (!strcmp(line, "unlimit"))
		return limit(-1);
	if (!strcmp(line, "weaken"))
		return weaken();
	if (!strcmp(line, "fill"))
		return fill();
	if (!strcmp(line, "empty"))
		return empty();
	return "unknown command";
}

int main(void)
{
	// So that it is as large as it gets.
	limit(-1);
	scn_serve();
}
