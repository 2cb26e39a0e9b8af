/* SPDX-License-Identifier: MIT */
/*
 * handlers_mm.c - the address space: fault, mmap, munmap, mprotect, madvise, populate.
 *
 * Lengths are rounded up to pages here, as Linux does it, so that virt sees whole pages only;
 * which errno a bad range gives is that of the man page.
 */
#include "daemon/service/internal.h"

#include <sys/mman.h>

/* A CPU number is a hint of the client's: whatever it says, it is one of ours. */
static unsigned call_cpu(const struct call *call, uint32_t cpu)
{
	return cpu % call->peer->service->machine->topology.nr_cpus;
}

/* Round *len up to pages; false if address + length leaves 64 bits. */
static bool round_range(uint64_t addr, uint64_t *len)
{
	uint64_t end;

	if (*len > ARENA_PAGE_MASK)
		return false;
	*len = ALIGN_UP(*len, ARENA_PAGE_SIZE);
	return !__builtin_add_overflow(addr, *len, &end);
}

static bool page_aligned(uint64_t addr)
{
	return IS_ALIGNED(addr, ARENA_PAGE_SIZE);
}

int handle_fault(struct call *call)
{
	const Arena__Fault *m = call->request->fault;
	struct fault_refusal refusal = {0};
	Arena__FaultReply *reply;
	int r;

	if (m->access != PROT_READ && m->access != PROT_WRITE && m->access != PROT_EXEC)
		return ARENA_E_INVALID;
	r = vm_fault(call->peer->mm, m->address, m->access, call_cpu(call, m->cpu), &refusal);
	/* The client shall acknowledge what is posted before it asks again. */
	if (r == ARENA_E_AGAIN)
		call->posted = UINT64_MAX;
	if (r)
		return r;
	reply = CALL_RESULT(call, fault, FAULT);
	reply->signo = (uint32_t)refusal.signo;
	reply->code = refusal.code;
	return 0;
}

int handle_mmap(struct call *call)
{
	const Arena__Mmap *m = call->request->mmap;
	struct vm_mmap_args args = {
		.addr = m->address,
		.len = m->length,
		.prot = m->prot,
		.flags = m->flags,
		.segment = m->segment,
		.offset = m->offset,
	};
	uint64_t addr;
	int r;

	if (!args.len || !page_aligned((uint64_t)args.offset))
		return ARENA_E_INVALID;
	if (!round_range(args.addr, &args.len))
		return ARENA_E_NO_MEMORY;
	if (args.offset < 0 || (uint64_t)args.offset > INT64_MAX - MIN(args.len, INT64_MAX))
		return ARENA_E_OVERFLOW_;
	r = vm_mmap(call->peer->mm, &args, &addr);
	if (r)
		return r;
	CALL_RESULT(call, address, ADDRESS)->address = addr;
	return 0;
}

int handle_munmap(struct call *call)
{
	const Arena__Munmap *m = call->request->munmap;
	uint64_t len = m->length;

	if (!len || !page_aligned(m->address) || !round_range(m->address, &len))
		return ARENA_E_INVALID;
	return vm_munmap(call->peer->mm, m->address, len);
}

int handle_mprotect(struct call *call)
{
	const Arena__Mprotect *m = call->request->mprotect;
	uint64_t len = m->length;

	if (!page_aligned(m->address))
		return ARENA_E_INVALID;
	if (!round_range(m->address, &len))
		return ARENA_E_NO_MEMORY;
	return vm_mprotect(call->peer->mm, m->address, len, m->prot);
}

int handle_madvise(struct call *call)
{
	const Arena__Madvise *m = call->request->madvise;
	uint64_t len = m->length;

	/* madvise has no CPU in its message: a populate of its own says where it runs. */
	if (!page_aligned(m->address) || !round_range(m->address, &len))
		return ARENA_E_INVALID;
	return vm_madvise(call->peer->mm, m->address, len, m->advice, 0);
}

int handle_populate(struct call *call)
{
	const Arena__Populate *m = call->request->populate;
	uint64_t len = m->length, next = m->address;
	int r = 0;

	if (!page_aligned(m->address) || !round_range(m->address, &len) || m->write > 1)
		return ARENA_E_INVALID;
	if (len)
		r = vm_populate(call->peer->mm, m->address, len, m->write, call_cpu(call, m->cpu),
				&next);
	if (r)
		return r;
	/* Not beyond the end that the client knows. */
	CALL_RESULT(call, populate, POPULATE)->next = MIN(next, m->address + m->length);
	return 0;
}
