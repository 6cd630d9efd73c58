// libgcc as Debian builds it asks the GNU C library where an object's call frame information is. musl has no such
// function; a libgcc that was built for musl has no need of it.
#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>
#include <stdint.h>

// bits/dl_find_object.h of glibc 2.35.
struct dl_find_object {
	unsigned long long flags;
	void *start, *end;
	struct link_map *map;
	void *information;
	unsigned long long reserved[7];
};

struct wanted {
	uintptr_t pc;
	struct dl_find_object *found;
};

static int look(struct dl_phdr_info *object, size_t size, void *argument)
{
	struct wanted *wanted = argument;
	void *information = NULL;
	int inside = 0;
	(void)size;
	for (int i = 0; i < object->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &object->dlpi_phdr[i];
		uintptr_t at = object->dlpi_addr + header->p_vaddr;
		if (header->p_type == PT_LOAD && wanted->pc - at < header->p_memsz) {
			inside = 1;
			wanted->found->start = (void *)at;
			wanted->found->end = (void *)(at + header->p_memsz);
		}
		if (header->p_type == PT_GNU_EH_FRAME)
			information = (void *)at;
	}
	wanted->found->information = information;
	return inside && information;
}

int _dl_find_object(void *pc, struct dl_find_object *found);
int _dl_find_object(void *pc, struct dl_find_object *found)
{
	struct wanted wanted = { (uintptr_t)pc, found };
	return dl_iterate_phdr(look, &wanted) ? 0 : -1;
}
