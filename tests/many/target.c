// Blocked tasks wait in a futex, spinning ones call a replaced function all the time: every one of them moves.
//
//# target: gcc,clang -O0,-O2 pie,no-pie
//
// Arguments: number of blocked tasks, number of spinning tasks.
#include "scn.h"

struct blocked {
	sem_t wake;
	atomic_int version;
};
struct spinning {
	atomic_ulong rounds;
	atomic_int version;
};
static struct blocked *blocked;
static struct spinning *spinning;
static int blocked_count, spinning_count;
static sem_t answered;

__attribute__((noinline, unused)) static void nothing(void)
{
	BARRIER();
}

// Without optimisation not a leaf: its first bytes can then be redirected in programs at low addresses too.
PATCHABLE int answer(int x)
{
#ifdef __OPTIMIZE__
	BARRIER();
#else
	nothing();
#endif
	return x + 1;
}

static int version_of(int x, int got)
{
	if (got != x + 1 && got != x + 2)
		scn_broken("answer(%d) is %d", x, got);
	return got - x;
}

static void *block(void *argument)
{
	struct blocked *self = argument;
	for (int x = 0;; x++) {
		while (sem_wait(&self->wake))
			if (errno != EINTR)
				scn_broken("sem_wait: %m");
		atomic_store(&self->version, version_of(x, answer(x)));
		sem_post(&answered);
	}
	return NULL;
}

static void *spin(void *argument)
{
	struct spinning *self = argument;
	for (int x = 0;; x = (x + 1) & 0xffff) {
		atomic_store(&self->version, version_of(x, answer(x)));
		atomic_fetch_add(&self->rounds, 1);
	}
	return NULL;
}

static const char *scn_check(void)
{
	static char text[128];
	int seen[3] = { 0 };
	for (int i = 0; i < blocked_count; i++)
		sem_post(&blocked[i].wake);
	for (int i = 0; i < blocked_count; i++)
		while (sem_wait(&answered))
			;
	for (int i = 0; i < blocked_count; i++)
		seen[atomic_load(&blocked[i].version)]++;
	for (int i = 0; i < spinning_count; i++) {
		unsigned long rounds = atomic_load(&spinning[i].rounds);
		while (atomic_load(&spinning[i].rounds) < rounds + 2)
			scn_nap_us(100);
		seen[atomic_load(&spinning[i].version)]++;
	}
	seen[version_of(7, answer(7))]++;
	if (!seen[2])
		return "old";
	if (!seen[1])
		return "new";
	snprintf(text, sizeof text, "old=%d new=%d", seen[1], seen[2]);
	return text;
}
#include "no_command.h"

int main(int count, char **values)
{
	blocked_count = scn_argument(count, values, 1, 1);
	spinning_count = scn_argument(count, values, 2, 1);
	blocked = calloc(blocked_count + 1, sizeof *blocked);
	spinning = calloc(spinning_count + 1, sizeof *spinning);
	sem_init(&answered, 0, 0);
	for (int i = 0; i < blocked_count; i++) {
		sem_init(&blocked[i].wake, 0, 0);
		scn_thread(block, &blocked[i]);
	}
	for (int i = 0; i < spinning_count; i++)
		scn_thread(spin, &spinning[i]);
	scn_serve();
}
