/* SPDX-License-Identifier: MIT */
/*
 * calls.c - the mmap family.
 *
 * The daemon decides; what is checked here is only what does not travel. Where a call took
 * something away, mailbox_call() has flushed it before it returns.
 */
#include <errno.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/calls.h"
#include "libclient/internal.h"

static bool in_window(const struct arena *a, uint64_t start, uint64_t len)
{
	return start >= a->tlb.base && len <= a->tlb.size &&
	       start - a->tlb.base <= a->tlb.size - len;
}

/* Fault a range in, piece by piece, then map it all. */
static int populate(struct arena *a, uint64_t start, uint64_t len, bool write)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Populate piece = ARENA__POPULATE__INIT;
	uint64_t end = start + len;
	struct mail_reply m;

	if (end < start)
		return -ENOMEM;
	request.call_case = ARENA__REQUEST__CALL_POPULATE;
	request.populate = &piece;
	piece.write = write;
	piece.address = start;
	do {
		int r;

		piece.length = end - piece.address;
		piece.cpu = os_current_cpu();
		r = mailbox_call(a, &request, &m, false);
		if (r < 0)
			return r;
		if (m.reply->result_case != ARENA__REPLY__RESULT_POPULATE ||
		    m.reply->populate->next <= piece.address)
			return -EPROTO;
		piece.address = m.reply->populate->next;
	} while (piece.address < end);
	client_map_range(a, start, end, write ? PROT_WRITE : PROT_READ);
	return 0;
}

int client_mmap(struct arena *a, const struct mmap_args *args, void **out)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mmap mmap_request = ARENA__MMAP__INIT;
	struct mail_reply m;
	uint64_t pages = ALIGN_UP((uint64_t)args->len, ARENA_PAGE_SIZE), address;
	int r;

	if (args->len && (!pages || pages > INT64_MAX))
		return -ENOMEM;
	if (args->off < 0 || !IS_ALIGNED(args->off, (off_t)ARENA_PAGE_SIZE))
		return -EINVAL;
	if ((uint64_t)args->off + pages < pages || (uint64_t)args->off + pages > INT64_MAX)
		return -EOVERFLOW;
	request.call_case = ARENA__REQUEST__CALL_MMAP;
	request.mmap = &mmap_request;
	mmap_request.address = (uintptr_t)args->addr;
	mmap_request.length = args->len;
	mmap_request.prot = (uint32_t)args->prot;
	mmap_request.flags = (uint32_t)args->flags;
	mmap_request.segment = args->segment;
	mmap_request.offset = args->off;
	r = mailbox_call(a, &request, &m, false);
	if (r < 0)
		return r;
	if (m.reply->result_case != ARENA__REPLY__RESULT_ADDRESS ||
	    !in_window(a, m.reply->address->address, pages))
		return -EPROTO;
	address = m.reply->address->address;
	/*
	 * The range may have been unmapped a moment ago by a thread that has not come to flush it:
	 * a store to what is left of that mapping would be lost.
	 */
	client_flush_upto(a, load_acquire(&a->tlb.channel->flush_head), false);
	/* As mmap(2): that it could not be populated is no failure of the mapping. */
	if ((args->flags & MAP_POPULATE) && (args->prot & (PROT_READ | PROT_WRITE)))
		populate(a, address, pages, args->prot & PROT_WRITE);
	*out = (void *)(uintptr_t)address;
	return 0;
}

void *arena_mmap(arena_t *a, void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	struct mmap_args args = {
		.addr = addr, .len = len, .prot = prot, .flags = flags, .off = off};
	void *out;
	int r = client_enter_attached(a);

	if (r == 0 && !(flags & MAP_ANONYMOUS))
		r = fd == -1 ? -EBADF : -ENODEV;
	if (r == 0 && (fd != -1 || off != 0) && (flags & MAP_ANONYMOUS))
		r = -EINVAL;
	if (r == 0)
		r = client_mmap(a, &args, &out);
	return client_return(r) < 0 ? MAP_FAILED : out;
}

static int plain_call(struct arena *a, Arena__Request *request)
{
	struct mail_reply m;
	int r = client_enter_attached(a);

	return client_return(r < 0 ? r : mailbox_call(a, request, &m, false));
}

int arena_munmap(arena_t *a, void *addr, size_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Munmap call = ARENA__MUNMAP__INIT;

	call.address = (uintptr_t)addr;
	call.length = len;
	request.call_case = ARENA__REQUEST__CALL_MUNMAP;
	request.munmap = &call;
	return plain_call(a, &request);
}

int arena_mprotect(arena_t *a, void *addr, size_t len, int prot)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mprotect call = ARENA__MPROTECT__INIT;

	call.address = (uintptr_t)addr;
	call.length = len;
	call.prot = (uint32_t)prot;
	request.call_case = ARENA__REQUEST__CALL_MPROTECT;
	request.mprotect = &call;
	if (plain_call(a, &request) < 0)
		return -1;
	client_rights_given(a, call.address, len, call.prot);
	return 0;
}

int arena_populate(arena_t *a, void *addr, size_t len, int write)
{
	int r = client_enter_attached(a);

	if (r == 0 && len == 0)
		r = IS_ALIGNED((uintptr_t)addr, ARENA_PAGE_SIZE) ? 0 : -EINVAL;
	else if (r == 0)
		r = populate(a, (uintptr_t)addr, len, write);
	return client_return(r);
}

int arena_madvise(arena_t *a, void *addr, size_t len, int advice)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Madvise call = ARENA__MADVISE__INIT;

	if (advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE)
		return arena_populate(a, addr, len, advice == MADV_POPULATE_WRITE);
	call.address = (uintptr_t)addr;
	call.length = len;
	call.advice = advice;
	request.call_case = ARENA__REQUEST__CALL_MADVISE;
	request.madvise = &call;
	return plain_call(a, &request);
}

void *arena_snapshot(arena_t *a, const void *addr, size_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Snapshot call = ARENA__SNAPSHOT__INIT;
	struct mail_reply m;
	int r = client_enter_attached(a);

	call.address = (uintptr_t)addr;
	call.length = len;
	request.call_case = ARENA__REQUEST__CALL_SNAPSHOT;
	request.snapshot = &call;
	if (r == 0)
		r = mailbox_call(a, &request, &m, false);
	if (r == 0 && m.reply->result_case != ARENA__REPLY__RESULT_ADDRESS)
		r = -EPROTO;
	return client_return(r) < 0 ? MAP_FAILED : (void *)(uintptr_t)m.reply->address->address;
}

int arena_null(arena_t *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Null call = ARENA__NULL__INIT;

	request.call_case = ARENA__REQUEST__CALL_NULL;
	request.null = &call;
	return plain_call(a, &request);
}
