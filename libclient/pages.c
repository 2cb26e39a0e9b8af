/* SPDX-License-Identifier: MIT */
/* pages.c - frames by order, and the frame behind an address. */
#include <errno.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/internal.h"

void *arena_alloc_pages(arena_t *a, unsigned gfp, unsigned order)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__AllocPages call = ARENA__ALLOC_PAGES__INIT;
	uint64_t address, len = order <= ARENA_MAX_ORDER ? ARENA_PAGE_SIZE << order : 0;
	struct mail_reply m;
	int r = client_enter_attached(a);

	if (r == 0 && len == 0)
		r = -EINVAL;
	if (r == 0) {
		call.gfp = gfp;
		call.order = order;
		call.cpu = os_current_cpu();
		request.call_case = ARENA__REQUEST__CALL_ALLOC_PAGES;
		request.alloc_pages = &call;
		r = mailbox_call(a, &request, &m, false);
	}
	if (r == 0 && (m.reply->result_case != ARENA__REPLY__RESULT_ALLOC_PAGES ||
		       m.reply->alloc_pages->address < a->tlb.base ||
		       m.reply->alloc_pages->address - a->tlb.base > a->tlb.size - len))
		r = -EPROTO;
	if (client_return(r) < 0)
		return NULL;
	address = m.reply->alloc_pages->address;
	client_map_range(a, address, address + len, PROT_WRITE);
	return (void *)(uintptr_t)address;
}

int arena_free_pages(arena_t *a, void *addr, unsigned order)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__FreePages call = ARENA__FREE_PAGES__INIT;
	struct mail_reply m;
	int r = client_enter_attached(a);

	if (r == 0) {
		call.address = (uintptr_t)addr;
		call.order = order;
		request.call_case = ARENA__REQUEST__CALL_FREE_PAGES;
		request.free_pages = &call;
		r = mailbox_call(a, &request, &m, false);
	}
	return client_return(r);
}

struct pfn_job {
	uint64_t addr;
	int64_t pfn;
};

static void pfn_job(struct arena *a, void *arg)
{
	struct pfn_job *job = arg;
	uint64_t addr = job->addr, mask = tlb_lock(&a->tlb, false);
	struct tlb_walk w = {0};

	tlb_walk(&a->tlb, addr, &w);
	tlb_unlock(&a->tlb, mask, false);
	if (w.pte)
		job->pfn = (int64_t)(arena_pte_pfn(w.pte) +
				     (w.level ? arena_table_index(addr, 0) : 0));
}

int64_t arena_virt_to_pfn(arena_t *a, const void *addr)
{
	struct pfn_job job = {.addr = (uintptr_t)addr, .pfn = -1};
	int r = client_enter_attached(a);

	if (r < 0)
		return client_return(r);
	if (job.addr >= a->tlb.base && job.addr - a->tlb.base < a->tlb.size)
		client_locked(a, pfn_job, &job);
	return job.pfn < 0 ? client_return(-EFAULT) : job.pfn;
}
