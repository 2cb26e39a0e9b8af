/* SPDX-License-Identifier: MIT */
/*
 * journal.h - the call in progress, so that it comes about exactly once.
 *
 * Where a call's outcome cannot be told from the rest of the truth, or may not come about twice
 * (mmap chooses a place, alloc_pages a block), the service opens the journal before the handler and
 * closes it after the answer is delivered; the operation in between notes what it has decided before
 * it does anything:
 *
 *	service          operation                       phase
 *	journal_begin                                    BEGUN
 *	                 decides; journal_prepare(arg)   PREPARED
 *	                 does it
 *	journal_done(reply)                              DONE
 *	delivers it
 *	journal_clear                                    NONE
 *
 * A worker that finds BEGUN or PREPARED dispatches the same request again, after
 * journal_set_resuming(). The operation asks journal_resume() first: with the arg[] of its
 * predecessor and the rebuilt indexes it knows whether that one got to its end (then it returns
 * the same result) or not (then it undoes what is there, and does it again). What it reads in arg[] was
 * written by us, but the request may be another one by now (the mailbox is the client's memory):
 * arg[0] says whose arguments they are, and what they name is checked as if a client had said it.
 *
 * All of it belongs to the control thread.
 */
#ifndef PHYS_JOURNAL_H
#define PHYS_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/phys/state.h"

/* A call begins. An open journal must have been cleared. */
void journal_begin(struct state *s, uint32_t peer, uint32_t mailbox, uint32_t method, uint64_t id);
/*
 * What the call is going to do; n <= JOURNAL_ARGS, the rest of arg[] is zero. Nothing must have been
 * done yet, or what was done of an earlier try is undone. Without a journal that was begun (unit
 * tests, calls of our own) nothing happens.
 */
void journal_prepare(struct state *s, unsigned n, const uint64_t *arg);
/* The packed answer, before it is delivered. Longer than JOURNAL_REPLY_MAX: BUG. */
void journal_done(struct state *s, const void *reply, size_t len);
/*
 * The answer of a call without a journal, before it takes the place of its request in a mailbox: DONE
 * at once, for from here on the request can no longer be read.
 */
void journal_answer(struct state *s, uint32_t peer, uint32_t mailbox, uint64_t id,
		    const void *reply, size_t len);
/* The answer is delivered, or there is nobody any more who waits for it. */
void journal_clear(struct state *s);

/* The next dispatch is that of the call found in the journal. journal_clear() and
 * journal_done() end it. */
void journal_set_resuming(struct state *s);
/* True once, if the call found in the journal was PREPARED: arg[] is what was prepared. */
bool journal_resume(struct state *s, uint64_t arg[JOURNAL_ARGS]);

#endif
