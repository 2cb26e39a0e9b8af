/* SPDX-License-Identifier: MIT */
/*
 * handlers_mm.c - the address space: fault, mmap, mremap, munmap, mprotect, madvise, populate, brk.
 *
 * Lengths are rounded up to pages here, as Linux does it, so that virt sees whole pages only;
 * which errno a bad range gives is that of the man page.
 */
#include "daemon/service/internal.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

int handle_fault(struct call *call)
{
	const Arena__Fault *m = call->request->fault;
	struct fault_refusal refusal = {0};
	Arena__FaultReply *reply;
	int r;

	if (m->access != PROT_READ && m->access != PROT_WRITE && m->access != PROT_EXEC)
		return ARENA_E_INVALID;
	r = vm_fault(call->peer->mm, m->address, m->access, call_cpu(call, m->cpu), &refusal);
	if (r == ARENA_E_WAIT_IO)
		return call_wait_io(call);
	if (r)
		return call_flush_again(call, r);
	reply = CALL_RESULT(call, fault, FAULT);
	reply->signo = (uint32_t)refusal.signo;
	reply->code = refusal.code;
	return 0;
}

/* `inside` lies in what was mapped. */
static int reply_address(struct call *call, uint64_t addr, uint64_t inside)
{
	Arena__AddressReply *reply = CALL_RESULT(call, address, ADDRESS);

	reply->address = addr;
	reply->populate = mm_wants_populate(call->peer->mm, inside);
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
	struct service *s = call->peer->service;
	_cleanup_(closep) int fd = -1;
	uint64_t addr;
	int r;

	if (args.flags & MAP_FIXED && call_writes_first(call)) {
		const struct file_piece piece = {args.addr, args.len};

		r = call_write_back(call, &piece, 1);
		if (r)
			return r;
	}
	fd = m->file ? service_take_descriptor(s) : -1;
	if (m->file) {
		if (fd < 0 || args.segment || args.flags & MAP_ANONYMOUS)
			return ARENA_E_INVALID;
		args.file = &fd;
	}
	if (!args.len || !page_aligned((uint64_t)args.offset))
		return ARENA_E_INVALID;
	if (!round_range(args.addr, &args.len))
		return ARENA_E_NO_MEMORY;
	if (args.offset < 0 || (uint64_t)args.offset > INT64_MAX - MIN(args.len, INT64_MAX))
		return ARENA_E_OVERFLOW_;
	r = vm_mmap(call->peer->mm, &args, &addr);
	virt_file_close(s->machine->virt, TAKE_FD(fd));
	return r ? r : reply_address(call, addr, addr);
}

/* What is in its way, and what it cuts off. */
static int mremap_write_back(struct call *call, const Arena__Mremap *m)
{
	struct file_piece piece[2] = {{0}};
	uint64_t had = m->old_length, wants = m->new_length;

	if (!round_range(m->address, &had) || !round_range(m->address, &wants))
		return 0;
	if (had > wants)
		piece[0] = (struct file_piece){m->address + wants, had - wants};
	if (m->flags & MREMAP_FIXED)
		piece[1] = (struct file_piece){m->new_address, wants};
	return call_write_back(call, piece, 2);
}

int handle_mremap(struct call *call)
{
	const Arena__Mremap *m = call->request->mremap;
	struct vm_mremap_args args = {
		.old = m->address,
		.old_len = m->old_length,
		.new_len = m->new_length,
		.flags = m->flags,
		.new_addr = m->new_address,
	};
	uint64_t addr;
	int r = 0;

	if (call_writes_first(call))
		r = mremap_write_back(call, m);
	if (!r)
		r = vm_mremap(call->peer->mm, &args, &addr);
	return r ? r : reply_address(call, addr, addr);
}

int handle_brk(struct call *call)
{
	const Arena__Brk *m = call->request->brk;
	uint64_t addr, end;
	int r = vm_brk(call->peer->mm, m->end, m->delta, &addr);

	if (r)
		return r;
	end = m->end ? addr : addr + (uint64_t)m->delta;
	return reply_address(call, addr, end - 1);
}

int handle_munmap(struct call *call)
{
	const Arena__Munmap *m = call->request->munmap;
	uint64_t len = m->length;

	if (!len || !page_aligned(m->address) || !round_range(m->address, &len))
		return ARENA_E_INVALID;
	if (call_writes_first(call)) {
		const struct file_piece piece = {m->address, len};
		int r = call_write_back(call, &piece, 1);

		if (r)
			return r;
	}
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
	struct peer *p = call->peer;
	uint64_t len = m->length;
	struct later *l;
	int r;

	/* Populating has a message of its own, which says where it runs. */
	if (!page_aligned(m->address) || !round_range(m->address, &len))
		return ARENA_E_INVALID;
	/* Only this one takes what others may have mapped. */
	if (m->advice != MADV_REMOVE)
		return call_flush_again(call, vm_madvise(p->mm, m->address, len, m->advice, NULL));
	l = later_create(call);
	if (!l)
		return -ENOMEM;
	r = vm_madvise(p->mm, m->address, len, m->advice, &l->wait);
	if (r == ARENA_E_WAIT_IO) {
		later_drop(l);
		return call_wait_io(call);
	}
	if (r || !l->wait.pending) {
		later_drop(l);
		return r;
	}
	service_hurry_flushes(p->service, p);
	return call_later(l);
}

int handle_populate(struct call *call)
{
	const Arena__Populate *m = call->request->populate;
	uint64_t len = m->length, next = m->address;
	int r = 0;

	if (!page_aligned(m->address) || !round_range(m->address, &len) ||
	    m->write > POPULATE_LOCK_ALL)
		return ARENA_E_INVALID;
	if (len)
		r = vm_populate(call->peer->mm, m->address, len, (enum populate_mode)m->write,
				call_cpu(call, m->cpu), &next);
	if (r == ARENA_E_WAIT_IO)
		return call_wait_io(call);
	if (r)
		return call_flush_again(call, r);
	/* Not beyond the end that the client knows. */
	CALL_RESULT(call, populate, POPULATE)->next = MIN(next, m->address + m->length);
	return 0;
}
