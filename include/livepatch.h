/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What a livegraft patch is written with. The structs have the names and fields of the kernel's <linux/livepatch.h>,
 * so a patch reads like the kernel's samples:
 *
 *	static int lp_answer(int x) { return x + 2; }
 *	static struct klp_func funcs[] = { { .old_name = "answer", .new_func = lp_answer }, { } };
 *	static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
 *	static struct klp_patch patch = { .objs = objs };
 *	KLP_PATCH(patch);
 *
 *	cc -O2 -fPIC -Iinclude -c fix.c && livegraft pack fix.o --target ./server -o fix.klp
 *
 * `livegraft pack` reads the structs out of the object file through its relocations; nothing here runs. So everything
 * must be a constant initialiser. Works with gcc and clang, C89 to C23 and C++ (write (void *)lp_answer there).
 */
#ifndef LIVEPATCH_H
#define LIVEPATCH_H

#include <stddef.h> /* NULL, as in the kernel */

#include <stddef.h>

#ifdef __cplusplus
#define KLP_BOOL bool
#else
#define KLP_BOOL _Bool
#endif

struct klp_object;

/* One function to replace. An array of these ends with an empty element. */
struct klp_func {
	const char *old_name;		/* the function in the object; static ones too */
	void *new_func;			/* its replacement, defined in the patch */
	unsigned long old_sympos;	/* 0: old_name is unique in the object; N: its Nth occurrence in the symbol table */
	__extension__ KLP_BOOL immediate; /* switch without looking at stacks */
};

/* Called around the transition of their object. */
struct klp_callbacks {
	int (*pre_patch)(struct klp_object *obj);	/* not 0: the load fails */
	void (*post_patch)(struct klp_object *obj);
	void (*pre_unpatch)(struct klp_object *obj);
	void (*post_unpatch)(struct klp_object *obj);
};

/* The executable or one shared library. An array of these ends with an empty element. */
struct klp_object {
	const char *name;		/* NULL: the executable; else a soname such as "libfoo.so.1" */
	struct klp_func *funcs;
	struct klp_callbacks callbacks;
};

/* A state of the system that the patch changes. An array of these ends with id 0. */
struct klp_state {
	unsigned long id;
	unsigned int version;
	void *data;
};

/* What is loaded and unloaded as one unit. */
struct klp_patch {
	struct klp_object *objs;
	struct klp_state *states;
	__extension__ KLP_BOOL replace;	/* replaces all older patches of the process */
	__extension__ KLP_BOOL immediate; /* the whole patch switches at once */
};

#define KLP_SECTION_(name) __attribute__((section(name), used, aligned(8)))
#define KLP_PASTE__(a, b) a##b
#define KLP_PASTE_(a, b) KLP_PASTE__(a, b)

/* Names the one `struct klp_patch` of a patch. */
#define KLP_PATCH(patch) \
	static struct klp_patch *KLP_PASTE_(klp_patch_entry_, __LINE__) KLP_SECTION_(".livegraft.patch") = &(patch)

/*
 * Says which symbol of the target an undefined name of the patch stands for, where the name alone does not say it:
 *
 *	extern int counter_2;
 *	KLP_SYM(counter_2, "counter", NULL, 2);		the second `counter` of the executable
 *
 * object: NULL or a soname, as in klp_object; sympos: as klp_func.old_sympos.
 */
#define KLP_SYM(alias, symbol, object, sympos) \
	static struct { \
		__typeof__(alias) *klp_alias; \
		const char *klp_symbol; \
		const char *klp_object; \
		unsigned long klp_sympos; \
	} KLP_PASTE_(klp_sym_entry_, __LINE__) KLP_SECTION_(".livegraft.syms") = { &alias, symbol, object, sympos }

#endif
