/* SPDX-License-Identifier: MIT */
/*
 * zero.c - the daemon's file of zeros, for what is read and was never written (docs/client.md).
 *
 * To ask for it says that entries may have its slot. So the slot is noted as one whose descriptor is to
 * be had before it is asked for: if the answer is lost, whoever meets such an entry gets it as he would any
 * that the program has closed, with a new connection.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "libclient/internal.h"

static int ask(struct arena *a, int *fd)
{
	_cleanup_(freep) struct sock_buffer *b = malloc(sizeof(*b));
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Slot slot = ARENA__SLOT__INIT;
	Arena__Reply *reply;
	unsigned nr = 0;
	int r;

	if (!b)
		return -ENOMEM;
	slot.number = ARENA_SLOT_ZERO;
	request.call_case = ARENA__REQUEST__CALL_SLOT;
	request.slot = &slot;
	r = socket_call(a, &request, b, &reply, fd, 1, &nr);
	return r < 0 || nr == 1 ? r : -EPROTO;
}

void client_ask_zero(struct arena *a)
{
	int fd = -1, r;

	if (tlb_slot_expect(&a->tlb, ARENA_SLOT_ZERO) < 0)
		return;
	r = ask(a, &fd);
	if (r == 0) {
		fd = client_high_fd(fd);
		if (tlb_slot_set(&a->tlb, ARENA_SLOT_ZERO, fd) < 0)
			close(fd);
	} else if (r == -ENOENT) {
		tlb_slot_is_gone(&a->tlb, ARENA_SLOT_ZERO);
	}
}
