/* SPDX-License-Identifier: MIT */
/* handlers_pages.c - frames by the block, and by number: alloc_pages, free_pages, mmap_pfn. */
#include "daemon/service/internal.h"

#include "arena/arena.h"

/* What arena.h offers; the bits above are the daemon's own and no client's to set. */
#define GFP_PUBLIC                                                                       \
	(ARENA_GFP_DMA | ARENA_GFP_HIGHMEM | ARENA_GFP_MOVABLE | ARENA_GFP_RECLAIMABLE | \
	 ARENA_GFP_ZERO | ARENA_GFP_ATOMIC | ARENA_GFP_NOWARN | ARENA_GFP_THISNODE)

int handle_alloc_pages(struct call *call)
{
	const Arena__AllocPages *m = call->request->alloc_pages;
	struct peer *p = call->peer;
	Arena__AllocPagesReply *reply;
	uint64_t addr, pfn;
	int r;

	if (m->order > ARENA_MAX_ORDER || (m->gfp & ~(uint32_t)GFP_PUBLIC))
		return ARENA_E_INVALID;
	r = vm_alloc_pages(p->mm, m->gfp, m->order, m->cpu % p->service->machine->topology.nr_cpus,
			   &addr, &pfn);
	if (r)
		return r;
	reply = CALL_RESULT(call, alloc_pages, ALLOC_PAGES);
	reply->address = addr;
	reply->pfn = pfn;
	return 0;
}

int handle_free_pages(struct call *call)
{
	const Arena__FreePages *m = call->request->free_pages;

	if (m->order > ARENA_MAX_ORDER || !IS_ALIGNED(m->address, ARENA_PAGE_SIZE))
		return ARENA_E_INVALID;
	return vm_free_pages(call->peer->mm, m->address, m->order);
}

int handle_mmap_pfn(struct call *call)
{
	const Arena__MmapPfn *m = call->request->mmap_pfn;
	struct vm_mmap_args args = {
		.addr = m->address,
		.len = m->length,
		.prot = m->prot,
		.flags = m->flags,
	};
	uint64_t addr;
	int r;

	if (!args.len || !round_range(args.addr, &args.len))
		return ARENA_E_INVALID;
	r = vm_mmap_pfn(call->peer->mm, &args, m->pfn, &addr);
	if (r)
		return r;
	CALL_RESULT(call, address, ADDRESS)->address = addr;
	return 0;
}
