/* SPDX-License-Identifier: MIT */
/*
 * calls_lock.c - memory that stays (mlock, pin) and memory that is looked at (mincore, msync).
 *
 * The daemon sets flags and counts; what may take long (populating, pinning) it does in pieces that
 * are asked for here, one after the other.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/os.h"
#include "base/util.h"
#include "libclient/calls.h"
#include "libclient/internal.h"

/* ---- mlock ---- */

int arena_mlock2(arena_t *a, const void *addr, size_t len, unsigned flags)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mlock call = ARENA__MLOCK__INIT;
	uint64_t start = ALIGN_DOWN((uintptr_t)addr, ARENA_PAGE_SIZE);
	uint64_t end = ALIGN_UP((uintptr_t)addr + len, ARENA_PAGE_SIZE);
	int r;

	call.address = (uintptr_t)addr;
	call.length = len;
	call.flags = flags;
	request.call_case = ARENA__REQUEST__CALL_MLOCK;
	request.mlock = &call;
	if (client_plain_call(a, &request) < 0)
		return -1;
	if (flags & MLOCK_ONFAULT || start == end)
		return 0;
	r = client_populate(a, start, end - start, CLIENT_POPULATE_LOCK);
	/* As mlock(2) says it: ENOMEM is of the address space, memory that is short is EAGAIN. */
	if (r == -EFAULT || r == -EACCES)
		r = -ENOMEM;
	else if (r == -ENOMEM)
		r = -EAGAIN;
	return client_return(r);
}

int arena_mlock(arena_t *a, const void *addr, size_t len)
{
	return arena_mlock2(a, addr, len, 0);
}

int arena_munlock(arena_t *a, const void *addr, size_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Munlock call = ARENA__MUNLOCK__INIT;

	call.address = (uintptr_t)addr;
	call.length = len;
	request.call_case = ARENA__REQUEST__CALL_MUNLOCK;
	request.munlock = &call;
	return client_plain_call(a, &request);
}

int arena_mlockall(arena_t *a, int flags)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mlockall call = ARENA__MLOCKALL__INIT;

	call.flags = (uint32_t)flags;
	request.call_case = ARENA__REQUEST__CALL_MLOCKALL;
	request.mlockall = &call;
	if (client_plain_call(a, &request) < 0)
		return -1;
	/* What cannot be populated is locked all the same. */
	if ((flags & MCL_CURRENT) && !(flags & MCL_ONFAULT))
		client_populate(a, a->tlb.base, a->tlb.size, CLIENT_POPULATE_LOCK_ALL);
	return 0;
}

int arena_munlockall(arena_t *a)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Munlockall call = ARENA__MUNLOCKALL__INIT;

	request.call_case = ARENA__REQUEST__CALL_MUNLOCKALL;
	request.munlockall = &call;
	return client_plain_call(a, &request);
}

/* ---- pins ---- */

int arena_unpin(arena_t *a, void *addr, size_t len)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Unpin call = ARENA__UNPIN__INIT;

	call.address = (uintptr_t)addr;
	call.length = len;
	request.call_case = ARENA__REQUEST__CALL_UNPIN;
	request.unpin = &call;
	return client_plain_call(a, &request);
}

int arena_pin(arena_t *a, void *addr, size_t len, int write)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Pin piece = ARENA__PIN__INIT;
	uint64_t start = (uintptr_t)addr, end = ALIGN_UP(start + len, ARENA_PAGE_SIZE);
	struct mail_reply m;
	int r = client_enter_attached(a), tries = CLIENT_FLUSH_TRIES;

	if (r == 0 && !IS_ALIGNED(start, ARENA_PAGE_SIZE))
		r = -EINVAL;
	if (r == 0 && end < start)
		r = -ENOMEM;
	request.call_case = ARENA__REQUEST__CALL_PIN;
	request.pin = &piece;
	piece.write = write != 0;
	piece.address = start;
	while (r == 0 && piece.address < end) {
		piece.length = end - piece.address;
		piece.cpu = os_current_cpu();
		r = mailbox_call(a, &request, &m, false);
		if (r == -EAGAIN && tries-- > 0) {
			r = 0;
			continue;
		}
		if (r < 0)
			break;
		if (m.reply->result_case != ARENA__REPLY__RESULT_POPULATE ||
		    m.reply->populate->next <= piece.address)
			r = -EPROTO;
		else
			piece.address = m.reply->populate->next;
	}
	if (r < 0) {
		int saved = r == -EACCES ? -EFAULT : r;

		/* All or nothing. */
		if (piece.address > start)
			arena_unpin(a, addr, piece.address - start);
		return client_return(saved);
	}
	client_map_range(a, start, end, write ? PROT_WRITE : PROT_READ);
	return 0;
}

/* ---- looking ---- */

int arena_msync(arena_t *a, void *addr, size_t len, int flags)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Msync call = ARENA__MSYNC__INIT;

	call.address = (uintptr_t)addr;
	call.length = len;
	call.flags = (uint32_t)flags;
	request.call_case = ARENA__REQUEST__CALL_MSYNC;
	request.msync = &call;
	return client_plain_call(a, &request);
}

/* Store where the kernel would say EFAULT, if it is not memory of the arena's own. */
static int copy_out(const struct arena *a, unsigned char *to, const unsigned char *from, size_t n)
{
	struct iovec local = {(void *)(uintptr_t)from, n}, remote = {to, n};

	if (client_in_window(a, (uintptr_t)to, n) ||
	    (syscall(SYS_process_vm_writev, getpid(), &local, 1UL, &remote, 1UL, 0UL) < 0 &&
	     errno != EFAULT)) {
		memcpy(to, from, n);
		return 0;
	}
	/* A part of it may have gone through. */
	remote.iov_len = 1;
	remote.iov_base = to + n - 1;
	local.iov_base = (void *)(uintptr_t)(from + n - 1);
	local.iov_len = 1;
	return syscall(SYS_process_vm_writev, getpid(), &local, 1UL, &remote, 1UL, 0UL) == 1
		       ? 0
		       : -EFAULT;
}

static int mincore_piece(struct arena *a, Arena__Request *request, unsigned char *vec,
			 uint64_t left, bool *hole, uint64_t *done)
{
	unsigned char pages[CLIENT_REPLY_ARENA * 8];
	struct mail_reply m;
	const Arena__MincoreReply *reply;
	uint64_t n, i;
	int r = mailbox_call(a, request, &m, false);

	if (r < 0)
		return r;
	reply = m.reply->mincore;
	if (m.reply->result_case != ARENA__REPLY__RESULT_MINCORE)
		return -EPROTO;
	n = (reply->next - request->mincore->address) >> ARENA_PAGE_SHIFT;
	if (!n || n > left || n > sizeof(pages) || reply->bits.len < (n + 7) / 8)
		return -EPROTO;
	for (i = 0; i < n; i++)
		pages[i] = reply->bits.data[i / 8] >> (i % 8) & 1;
	*hole = reply->hole;
	*done = n;
	return copy_out(a, vec, pages, n);
}

int arena_mincore(arena_t *a, void *addr, size_t len, unsigned char *vec)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Mincore piece = ARENA__MINCORE__INIT;
	uint64_t start = (uintptr_t)addr, end = ALIGN_UP(start + len, ARENA_PAGE_SIZE), n;
	bool hole = false;
	int r = client_enter_attached(a);

	if (r == 0 && !IS_ALIGNED(start, ARENA_PAGE_SIZE))
		r = -EINVAL;
	if (r == 0 && (start + len < start || end < start))
		r = -ENOMEM;
	request.call_case = ARENA__REQUEST__CALL_MINCORE;
	request.mincore = &piece;
	for (piece.address = start; r == 0 && piece.address < end && !hole;
	     piece.address += n << ARENA_PAGE_SHIFT) {
		piece.length = end - piece.address;
		n = 0;
		r = mincore_piece(a, &request, vec + ((piece.address - start) >> ARENA_PAGE_SHIFT),
				  piece.length >> ARENA_PAGE_SHIFT, &hole, &n);
	}
	return client_return(r == 0 && hole ? -ENOMEM : r);
}
