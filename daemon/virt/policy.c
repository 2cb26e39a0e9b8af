/* SPDX-License-Identifier: MIT */
/*
 * policy.c - from which nodes an address space gets its frames: set_mempolicy(2), for all of it.
 *
 * Two words of the mm's header. They are looked at wherever a frame is allocated for the mm, and by nobody
 * else: what it has already stays where it is. A child of fork() begins with its parent's.
 *
 *     MPOL_DEFAULT, MPOL_LOCAL   the faulting CPU's node, then others by distance
 *     MPOL_PREFERRED             the lowest of the nodes, then others by distance from it
 *     MPOL_BIND                  these nodes and no others, from the CPU's by distance
 *
 * Truth: a mode that needs nodes is stored after them, one that needs none before they go.
 */
#include <linux/mempolicy.h>

#include "daemon/virt/internal.h"

static uint64_t all_nodes(const struct virt *v)
{
	unsigned nr = phys_nr_nodes(v->phys);

	return nr >= 64 ? UINT64_MAX : (UINT64_C(1) << nr) - 1;
}

bool policy_is_valid(const struct virt *v, const struct arena_mm_header *h)
{
	if (h->policy_nodes & ~all_nodes(v))
		return false;
	switch (h->policy_mode) {
	case MPOL_DEFAULT:
	case MPOL_LOCAL:
		return true;
	case MPOL_PREFERRED:
	case MPOL_BIND:
		return h->policy_nodes != 0;
	default:
		return false;
	}
}

int vm_set_mempolicy(struct mm *mm, uint32_t mode, uint64_t nodes)
{
	struct arena_mm_header *h = mm->header;

	CONTROL_THREAD();
	if (nodes & ~all_nodes(mm->virt))
		return ARENA_E_INVALID;
	if (mode == MPOL_PREFERRED && !nodes)
		mode = MPOL_LOCAL;
	switch (mode) {
	case MPOL_DEFAULT:
	case MPOL_LOCAL:
		if (nodes)
			return ARENA_E_INVALID;
		truth_store(&h->policy_mode, mode);
		truth_store(&h->policy_nodes, nodes);
		return 0;
	case MPOL_PREFERRED:
	case MPOL_BIND:
		if (!nodes)
			return ARENA_E_INVALID;
		truth_store(&h->policy_nodes, nodes);
		truth_store(&h->policy_mode, mode);
		return 0;
	default:
		return ARENA_E_INVALID;
	}
}

void policy_apply(const struct mm *mm, struct alloc_request *rq)
{
	const struct arena_mm_header *h = mm->header;

	if (likely(h->policy_mode == MPOL_DEFAULT))
		return;
	if (h->policy_mode == MPOL_BIND)
		rq->nodes = h->policy_nodes;
	else if (h->policy_mode == MPOL_PREFERRED)
		rq->prefer = 1u + (unsigned)__builtin_ctzll(h->policy_nodes);
}

int anon_alloc(const struct vma *v, uint64_t addr, unsigned order, unsigned gfp, unsigned cpu,
	       pfn_t hint, struct alloc_result *out)
{
	const struct mm *mm = v->mm;
	struct alloc_request rq = {
		.domain = mm->domain,
		.gfp = GFP_USER_MOVABLE | gfp,
		.order = order,
		.cpu = cpu,
		.hint = hint,
		.owner = PG_ANON,
		.mapping = mm->anon_family,
		.index = vma_anon_index(v, addr),
	};

	policy_apply(mm, &rq);
	return alloc_pages(mm->virt->phys, &rq, out);
}
