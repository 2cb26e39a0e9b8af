/* SPDX-License-Identifier: MIT */
/*
 * resume.h - calls of this room that come about exactly once (daemon/phys/journal.h).
 *
 * Each such operation asks call_resume() first, and calls call_prepare() when it has decided
 * what it will do. arg[0] says which operation of which mm the others belong to; what they mean:
 *
 *	MMAP         start, end, object (0: anonymous private), prot
 *	ALLOC_PAGES  pfn, order; the block is claimed already: without entries recovery frees it
 *	FREE_PAGES   addr, order
 *	OPEN         handle, object, 1 if the object is made by this call
 *	CLOSE        handle, object
 *	UNLINK       object, uid of the caller
 *	ATTACH       peer
 *	FORK         child
 *	SNAPSHOT     start of the copy, length
 *	MREMAP       see struct plan of mremap.c
 *	BRK          the break before, the break after
 *	PIN          addr, pages of the client's pinned before
 *	UNPIN        addr, pages of the client's pinned before, length
 *	MMAP_PFN     start, length
 *
 * All other operations may simply be done again: what is done of them already is found done.
 */
#ifndef VIRT_RESUME_H
#define VIRT_RESUME_H

#include "daemon/phys/journal.h"
#include "daemon/virt/internal.h"

enum virt_call {
	VIRT_CALL_MMAP = 1,
	VIRT_CALL_ALLOC_PAGES,
	VIRT_CALL_FREE_PAGES,
	VIRT_CALL_OPEN,
	VIRT_CALL_CLOSE,
	VIRT_CALL_UNLINK,
	VIRT_CALL_ATTACH,
	VIRT_CALL_FORK,
	VIRT_CALL_SNAPSHOT,
	VIRT_CALL_MREMAP,
	VIRT_CALL_BRK,
	VIRT_CALL_PIN,
	VIRT_CALL_UNPIN,
	VIRT_CALL_MMAP_PFN,
};

static inline uint64_t call_tag(enum virt_call call, uint32_t mm)
{
	return (uint64_t)call << 32 | mm;
}

/* mm: id, 0 where the call has none. */
static inline void call_prepare(struct virt *v, enum virt_call call, uint32_t mm, uint64_t arg1,
				uint64_t arg2, uint64_t arg3, uint64_t arg4)
{
	const uint64_t arg[] = {call_tag(call, mm), arg1, arg2, arg3, arg4};

	journal_prepare(v->state, ARRAY_SIZE(arg), arg);
}

/* A worker before us prepared this very call: arg[1] and on are what it noted. */
static inline bool call_resume(struct virt *v, enum virt_call call, uint32_t mm,
			       uint64_t arg[JOURNAL_ARGS])
{
	return journal_resume(v->state, arg) && arg[0] == call_tag(call, mm);
}

#endif
