/* SPDX-License-Identifier: MIT */
/* journal.c - the phases of struct call_journal; its order of stores is in state.h. */
#include "daemon/phys/journal.h"

#include "base/truth.h"
#include "base/util.h"
#include "daemon/sync/lock.h"

static void set_phase(struct call_journal *j, enum journal_phase phase)
{
	truth_store(&j->phase, (uint32_t)phase);
}

void journal_begin(struct state *s, uint32_t peer, uint32_t mailbox, uint32_t method, uint64_t id)
{
	struct call_journal *j = s->journal;

	CONTROL_THREAD();
	ASSERT(j->phase == JOURNAL_NONE);
	j->peer = peer;
	j->mailbox = mailbox;
	j->method = method;
	j->request_id = id;
	truth_count();
	set_phase(j, JOURNAL_BEGUN);
}

void journal_prepare(struct state *s, unsigned n, const uint64_t *arg)
{
	struct call_journal *j = s->journal;

	BUG_ON(n > JOURNAL_ARGS);
	if (j->phase != JOURNAL_BEGUN && j->phase != JOURNAL_PREPARED)
		return;
	/* Arguments of an earlier try must not be taken for these. */
	if (j->phase == JOURNAL_PREPARED)
		set_phase(j, JOURNAL_BEGUN);
	for (unsigned i = 0; i < JOURNAL_ARGS; i++)
		j->arg[i] = i < n ? arg[i] : 0;
	truth_count();
	set_phase(j, JOURNAL_PREPARED);
}

void journal_done(struct state *s, const void *reply, size_t len)
{
	struct call_journal *j = s->journal;

	BUG_ON(len > JOURNAL_REPLY_MAX);
	if (j->phase == JOURNAL_NONE)
		return;
	s->resuming = false;
	truth_fill(j->reply, reply, len);
	truth_store(&j->reply_len, (uint32_t)len);
	set_phase(j, JOURNAL_DONE);
}

void journal_answer(struct state *s, uint32_t peer, uint32_t mailbox, uint64_t id,
		    const void *reply, size_t len)
{
	struct call_journal *j = s->journal;

	BUG_ON(len > JOURNAL_REPLY_MAX);
	ASSERT(j->phase == JOURNAL_NONE);
	j->peer = peer;
	j->mailbox = mailbox;
	j->method = 0;
	j->request_id = id;
	j->reply_len = (uint32_t)len;
	truth_fill(j->reply, reply, len);
	set_phase(j, JOURNAL_DONE);
}

void journal_clear(struct state *s)
{
	s->resuming = false;
	if (s->journal->phase != JOURNAL_NONE)
		set_phase(s->journal, JOURNAL_NONE);
}

void journal_set_resuming(struct state *s)
{
	s->resuming = true;
}

bool journal_resume(struct state *s, uint64_t arg[JOURNAL_ARGS])
{
	const struct call_journal *j = s->journal;

	if (!s->resuming || j->phase != JOURNAL_PREPARED)
		return false;
	s->resuming = false;
	for (unsigned i = 0; i < JOURNAL_ARGS; i++)
		arg[i] = j->arg[i];
	return true;
}
