/* SPDX-License-Identifier: MIT */
/*
 * calls.c - mmap, munmap, mprotect, mremap, madvise, brk; calls_lock.c has the rest of the family.
 *
 * The daemon decides; what is checked here is only what does not travel. Where a call took
 * something away, mailbox_call() has flushed it before it returns.
 */
#include <errno.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/calls.h"
#include "libclient/internal.h"

bool client_in_window(const struct arena *a, uint64_t start, uint64_t len)
{
	return start >= a->tlb.base && len <= a->tlb.size &&
	       start - a->tlb.base <= a->tlb.size - len;
}

/* Fault a range in, piece by piece, then map it all. */
int client_populate(struct arena *a, uint64_t start, uint64_t len, enum populate_how how)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Populate piece = ARENA__POPULATE__INIT;
	uint64_t end = start + len;
	int tries = CLIENT_FLUSH_TRIES;
	struct mail_reply m;

	if (end < start)
		return -ENOMEM;
	request.call_case = ARENA__REQUEST__CALL_POPULATE;
	request.populate = &piece;
	piece.write = how;
	piece.address = start;
	do {
		int r;

		piece.length = end - piece.address;
		piece.cpu = os_current_cpu();
		r = mailbox_call(a, &request, &m, false);
		/* Shared memory that a flush makes stable; it is applied. */
		if (r == -EAGAIN && tries-- > 0)
			continue;
		if (r < 0)
			return r;
		if (m.reply->result_case != ARENA__REPLY__RESULT_POPULATE ||
		    m.reply->populate->next <= piece.address)
			return -EPROTO;
		piece.address = m.reply->populate->next;
	} while (piece.address < end);
	/* The whole window is mapped as it is touched. */
	if (how != CLIENT_POPULATE_LOCK_ALL)
		client_map_range(a, start, end,
				 how == CLIENT_POPULATE_WRITE ? PROT_WRITE : PROT_READ);
	return 0;
}

/*
 * A range that begins to be mapped may have been unmapped a moment ago by a thread that has not
 * come to flush it: a store to what is left of that mapping would be lost.
 */
static void flush_before_use(struct arena *a)
{
	client_flush_upto(a, load_acquire(&a->tlb.channel->flush_head), false);
}

/* A call whose answer is an address in the window, with `len` bytes from there on. */
static int address_call_while(struct arena *a, Arena__Request *request, uint64_t len,
			      uint64_t *address, bool *locked, struct meanwhile w)
{
	struct mail_reply m;
	int r = mailbox_call_while(a, request, &m, false, w);

	if (r < 0)
		return r;
	if (m.reply->result_case != ARENA__REPLY__RESULT_ADDRESS ||
	    !client_in_window(a, m.reply->address->address, len))
		return -EPROTO;
	*address = m.reply->address->address;
	*locked = m.reply->address->populate;
	flush_before_use(a);
	return 0;
}

static int address_call(struct arena *a, Arena__Request *request, uint64_t len, uint64_t *address,
			bool *locked)
{
	return address_call_while(a, request, len, address, locked, (struct meanwhile){0});
}

int client_mmap(struct arena *a, const struct mmap_args *args, void **out)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mmap mmap_request = ARENA__MMAP__INIT;
	uint64_t pages = ALIGN_UP((uint64_t)args->len, ARENA_PAGE_SIZE), address;
	bool locked;
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
	if (args->segment || args->flags & MAP_ANONYMOUS) {
		r = address_call(a, &request, pages, &address, &locked);
	} else {
		mmap_request.file = 1;
		r = client_file_call(a, &request, args->file, &address, &locked);
		if (r == 0 && !client_in_window(a, address, pages))
			r = -EPROTO;
		if (r == 0)
			flush_before_use(a);
	}
	if (r < 0)
		return r;
	/* As mmap(2): that it could not be populated is no failure of the mapping. */
	if (locked)
		client_populate(a, address, pages, CLIENT_POPULATE_LOCK);
	else if ((args->flags & (MAP_POPULATE | MAP_NONBLOCK)) == MAP_POPULATE &&
		 (args->prot & (PROT_READ | PROT_WRITE)))
		client_populate(a, address, pages,
				args->prot & PROT_WRITE ? CLIENT_POPULATE_WRITE
							: CLIENT_POPULATE_READ);
	*out = (void *)(uintptr_t)address;
	return 0;
}

void *arena_mmap(arena_t *a, void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	struct mmap_args args = {
		.addr = addr, .len = len, .prot = prot, .flags = flags, .off = off, .file = fd};
	void *out;
	int r = client_enter_attached(a);

	if (r == 0 && !(flags & MAP_ANONYMOUS) && fd < 0)
		r = -EBADF;
	if (r == 0 && (fd != -1 || off != 0) && (flags & MAP_ANONYMOUS))
		r = -EINVAL;
	if (r == 0)
		r = client_mmap(a, &args, &out);
	return client_return(r) < 0 ? MAP_FAILED : out;
}

int client_plain_call(struct arena *a, Arena__Request *request)
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
	return client_plain_call(a, &request);
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
	if (client_plain_call(a, &request) < 0)
		return -1;
	client_rights_given(a, call.address, len, call.prot);
	return 0;
}

void *arena_mremap(arena_t *a, void *old, size_t old_len, size_t new_len, int flags, void *new_addr)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mremap call = ARENA__MREMAP__INIT;
	uint64_t pages = ALIGN_UP((uint64_t)new_len, ARENA_PAGE_SIZE), address = 0;
	uint64_t had = ALIGN_UP((uint64_t)old_len, ARENA_PAGE_SIZE);
	bool locked = false;
	int r = client_enter_attached(a);

	call.address = (uintptr_t)old;
	call.old_length = old_len;
	call.new_length = new_len;
	call.flags = (uint32_t)flags;
	call.new_address = (uintptr_t)new_addr;
	request.call_case = ARENA__REQUEST__CALL_MREMAP;
	request.mremap = &call;
	if (r == 0)
		r = address_call(a, &request, pages, &address, &locked);
	/* What came with it is there. */
	if (r == 0 && locked && pages > had)
		client_populate(a, address + had, pages - had, CLIENT_POPULATE_LOCK);
	return client_return(r) < 0 ? MAP_FAILED : (void *)(uintptr_t)address;
}

/* ---- the heap ---- */

static int move_break(struct arena *a, uint64_t end, int64_t delta, uint64_t *address)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Brk call = ARENA__BRK__INIT;
	uint64_t before = ALIGN_UP(load_acquire(&a->tlb.header->brk), ARENA_PAGE_SIZE), after;
	bool locked;
	int r;

	call.end = end;
	call.delta = delta;
	request.call_case = ARENA__REQUEST__CALL_BRK;
	request.brk = &call;
	r = address_call(a, &request, 0, address, &locked);
	after = ALIGN_UP(load_acquire(&a->tlb.header->brk), ARENA_PAGE_SIZE);
	if (r == 0 && locked && after > before)
		client_populate(a, before, after - before, CLIENT_POPULATE_LOCK);
	return r;
}

int arena_brk(arena_t *a, void *end)
{
	uint64_t address;
	int r = client_enter_attached(a);

	if (r == 0)
		r = end ? move_break(a, (uintptr_t)end, 0, &address) : -ENOMEM;
	return client_return(r);
}

void *arena_sbrk(arena_t *a, intptr_t delta)
{
	uint64_t address = 0;
	int r = client_enter_attached(a);

	if (r == 0)
		r = move_break(a, 0, delta, &address);
	return client_return(r) < 0 ? (void *)-1 : (void *)(uintptr_t)address;
}

/* ---- advice ---- */

/* populate: what the mapping forbids is `forbidden`. */
static int populate_call(struct arena *a, void *addr, size_t len, int write, int forbidden)
{
	int r = client_enter_attached(a);

	if (r == 0 && len == 0)
		r = IS_ALIGNED((uintptr_t)addr, ARENA_PAGE_SIZE) ? 0 : -EINVAL;
	else if (r == 0)
		r = client_populate(a, (uintptr_t)addr, len,
				    write ? CLIENT_POPULATE_WRITE : CLIENT_POPULATE_READ);
	return client_return(r == -EACCES ? forbidden : r);
}

int arena_populate(arena_t *a, void *addr, size_t len, int write)
{
	return populate_call(a, addr, len, write, -EFAULT);
}

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
/* The daemon copies between two calls, if no other thread has written meanwhile. */
#define COLLAPSE_TRIES 8

int arena_madvise(arena_t *a, void *addr, size_t len, int advice)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Madvise call = ARENA__MADVISE__INIT;
	bool copies = advice == MADV_COLLAPSE || advice == ARENA_MADV_GATHER;
	int r, tries = copies ? COLLAPSE_TRIES : 1;

	if (advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE)
		return populate_call(a, addr, len, advice == MADV_POPULATE_WRITE, -EINVAL);
	call.address = (uintptr_t)addr;
	call.length = len;
	call.advice = advice;
	request.call_case = ARENA__REQUEST__CALL_MADVISE;
	request.madvise = &call;
	do {
		r = client_plain_call(a, &request);
	} while (r < 0 && errno == EAGAIN && --tries > 0);
	return r;
}

void *arena_mmap_pfn(arena_t *a, void *addr, uint64_t pfn, size_t len, int prot, int flags)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__MmapPfn call = ARENA__MMAP_PFN__INIT;
	uint64_t address = 0, bytes = ALIGN_UP((uint64_t)len, ARENA_PAGE_SIZE);
	bool locked;
	int r = client_enter_attached(a);

	call.address = (uintptr_t)addr;
	call.length = len;
	call.pfn = pfn;
	call.prot = (uint32_t)prot;
	call.flags = (uint32_t)flags;
	request.call_case = ARENA__REQUEST__CALL_MMAP_PFN;
	request.mmap_pfn = &call;
	if (r == 0)
		r = bytes < len ? -EINVAL : address_call(a, &request, bytes, &address, &locked);
	if (client_return(r) < 0)
		return MAP_FAILED;
	if (prot & (PROT_READ | PROT_WRITE))
		client_map_range(a, address, address + bytes,
				 prot & PROT_WRITE ? PROT_WRITE : PROT_READ);
	return (void *)(uintptr_t)address;
}

/*
 * A snapshot takes the right to write from all of its range, which takes the kernel longer than the daemon takes for
 * the rest. So it is not waited for: the flush that comes with the reply finds it done, but for
 * what was written to in between.
 */
static void take_writing(struct arena *a, void *arg)
{
	const Arena__Snapshot *call = arg;
	uint64_t len = ALIGN_UP(call->length, ARENA_PAGE_SIZE);

	if (len >= call->length && IS_ALIGNED(call->address, ARENA_PAGE_SIZE) &&
	    client_in_window(a, call->address, len) && !client_on_window_memory(a))
		tlb_take_writing(&a->tlb, call->address, call->address + len);
}

void *arena_snapshot(arena_t *a, const void *addr, size_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Snapshot call = ARENA__SNAPSHOT__INIT;
	struct meanwhile w = {take_writing, &call};
	uint64_t address = 0;
	bool locked;
	int r = client_enter_attached(a);

	call.address = (uintptr_t)addr;
	call.length = len;
	request.call_case = ARENA__REQUEST__CALL_SNAPSHOT;
	request.snapshot = &call;
	if (r == 0)
		r = address_call_while(a, &request, len, &address, &locked, w);
	return client_return(r) < 0 ? MAP_FAILED : (void *)(uintptr_t)address;
}

int arena_null(arena_t *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Null call = ARENA__NULL__INIT;

	request.call_case = ARENA__REQUEST__CALL_NULL;
	request.null = &call;
	return client_plain_call(a, &request);
}
