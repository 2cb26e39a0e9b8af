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
	tlb_refill_range(&a->tlb, address, address + len, PROT_WRITE);
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

int64_t arena_virt_to_pfn(arena_t *a, const void *addr)
{
	uint64_t at = (uintptr_t)addr, mask;
	struct tlb_walk w;
	int64_t pfn = -1;
	int r = client_enter_attached(a);

	if (r < 0)
		return client_return(r);
	if (at >= a->tlb.base && at - a->tlb.base < a->tlb.size) {
		mask = tlb_lock(&a->tlb, false);
		if (tlb_walk(&a->tlb, at, &w))
			pfn = (int64_t)(arena_pte_pfn(w.pte) +
					(w.level ? arena_table_index(at, 0) : 0));
		tlb_unlock(&a->tlb, mask, false);
	}
	return pfn < 0 ? client_return(-EFAULT) : pfn;
}
