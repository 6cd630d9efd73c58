// Every system call that an interruption could end with EINTR sits in a thread of its own. None may ever see EINTR, no
// timeout may end early, and each call must go on making progress.
//
//# target: gcc -O2 pie
//# mappings: own
//
// Argument: 1 if timeouts may end early: those that are counted in ticks do on a machine that gets its ticks late.
// Commands: "rounds" says how often the slowest call has come round since the last "rounds", and names it; "skipped"
// names the calls that this kernel or sandbox does not have.
#include "scn.h"
#include "calls.h"

PATCHABLE int tick(int x)
{
	BARRIER();
	return x + 1;
}

static struct {
	atomic_long rounds;
	atomic_int version, skipped;
	long last;
} state[CALLS];

static int late_ticks;

static void *run(void *argument)
{
	int self = (int)(intptr_t)argument;
	if (calls[self].prepare && !calls[self].prepare()) {
		atomic_store(&state[self].skipped, 1);
		return NULL;
	}
	for (;;) {
		uint64_t before = scn_now_us();
		const char *wrong = calls[self].call();
		uint64_t took = scn_now_us() - before;
		if (wrong)
			scn_broken("%s: %s (%s) after %lu us", calls[self].name, wrong, strerror(errno), (long)took);
		if (!late_ticks && took < calls[self].at_least_us)
			scn_broken("%s ended after %lu us", calls[self].name, (long)took);
		atomic_store(&state[self].version, tick(3) - 3);
		atomic_fetch_add(&state[self].rounds, 1);
	}
	return NULL;
}

static const char *scn_check(void)
{
	int seen[3] = { 0 };
	long before[CALLS];
	for (int i = 0; i < CALLS; i++)
		before[i] = atomic_load(&state[i].rounds);
	for (int i = 0; i < CALLS; i++) {
		if (state[i].skipped || calls[i].for_ever)
			continue;
		for (int waited = 0; atomic_load(&state[i].rounds) < before[i] + 2; waited++) {
			if (waited > 10000)
				scn_broken("%s does not come round", calls[i].name);
			scn_nap_us(1000);
		}
		seen[atomic_load(&state[i].version)]++;
	}
	return !seen[2] ? "old" : !seen[1] ? "new" : "mixed";
}

static const char *scn_command(const char *line)
{
	static char text[1024];
	int length = 0;
	text[0] = 0;
	if (!strcmp(line, "skipped")) {
		for (int i = 0; i < CALLS; i++)
			if (state[i].skipped)
				length += snprintf(text + length, sizeof text - length, "%s ", calls[i].name);
		return text;
	}
	long least = 1000000;
	const char *slowest = "";
	for (int i = 0; i < CALLS; i++) {
		if (state[i].skipped || calls[i].for_ever)
			continue;
		long now = atomic_load(&state[i].rounds);
		if (now - state[i].last < least) {
			least = now - state[i].last;
			slowest = calls[i].name;
		}
		state[i].last = now;
	}
	snprintf(text, sizeof text, "%ld %s", least, slowest);
	return text;
}

int main(int count, char **values)
{
	late_ticks = scn_argument(count, values, 1, 0);
	prepare_helpers();
	for (intptr_t i = 0; i < CALLS; i++)
		scn_thread(run, (void *)i);
	scn_thread(helper, NULL);
	scn_nap_us(20000);
	scn_serve();
}
