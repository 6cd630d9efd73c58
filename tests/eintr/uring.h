// A minimal io_uring: one timeout request, waited for with io_uring_enter.
#include <linux/io_uring.h>
#include <sys/mman.h>

static struct {
	int fd;
	_Atomic unsigned *sq_tail, *cq_head, *cq_tail;
	unsigned *sq_array, sq_mask;
	struct io_uring_sqe *entries;
} ring;

static int prepare_io_uring(void)
{
	struct io_uring_params parameters = { 0 };
	ring.fd = syscall(SYS_io_uring_setup, 4, &parameters);
	if (ring.fd < 0)
		return 0;
	char *sq = mmap(NULL, parameters.sq_off.array + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, parameters.cq_off.cqes + 256, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.entries = mmap(NULL, 4 * sizeof *ring.entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring.entries == MAP_FAILED)
		return 0;
	ring.sq_tail = (void *)(sq + parameters.sq_off.tail);
	ring.sq_mask = *(unsigned *)(sq + parameters.sq_off.ring_mask);
	ring.sq_array = (void *)(sq + parameters.sq_off.array);
	ring.cq_head = (void *)(cq + parameters.cq_off.head);
	ring.cq_tail = (void *)(cq + parameters.cq_off.tail);
	return 1;
}

static const char *call_io_uring(void)
{
	static struct __kernel_timespec time = { 0, 60 * 1000000 };
	unsigned tail = atomic_load(ring.sq_tail), index = tail & ring.sq_mask;
	struct io_uring_sqe *entry = &ring.entries[index];
	memset(entry, 0, sizeof *entry);
	entry->opcode = IORING_OP_TIMEOUT;
	entry->addr = (uintptr_t)&time;
	entry->len = 1;
	ring.sq_array[index] = index;
	atomic_store(ring.sq_tail, tail + 1);
	// Submitted first, waited for afterwards: a restarted call must not submit anything twice.
	if (syscall(SYS_io_uring_enter, ring.fd, 1, 0, 0, NULL, 0) != 1)
		return "submitting failed";
	if (syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return "waiting failed";
	if (atomic_load(ring.cq_tail) != atomic_load(ring.cq_head) + 1)
		return "not one completion";
	atomic_store(ring.cq_head, atomic_load(ring.cq_tail));
	return NULL;
}
