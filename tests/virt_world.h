/* SPDX-License-Identifier: MIT */
/*
 * virt_world.h - several clients of a machine, their models, and what they do at random to memory
 * that is mapped: touch, populate, acknowledge late, write where they no longer should.
 */
#ifndef TESTS_VIRT_WORLD_H
#define TESTS_VIRT_WORLD_H

#include "tests/virt_model.h"

#define NR_CLIENTS 5
#define NR_WAITS 16
#ifndef ARENA_BYTES
#define ARENA_BYTES (UINT64_C(512) << 20)
#endif

static struct world {
	struct fake_machine m;
	struct prng rng;
	struct mclient client[NR_CLIENTS];
	struct mobject object[MAX_OBJECTS];
	struct flush_wait wait[NR_WAITS];
	bool waiting[NR_WAITS];
	pid_t next_pid;
	uint64_t next_word;
	uint64_t writes, refusals, no_memory, scribbles, done;
	unsigned workers; /* that came after one that died */
} w;

static const char *const names[NR_NAMES] = {"a", "b", "c", "d", "e", "f", "g", "h"};

static inline uint64_t below(uint64_t n)
{
	return prng_below(&w.rng, n);
}

static inline bool chance(unsigned percent)
{
	return below(100) < percent;
}

static inline uint64_t whole_blocks(void)
{
	uint64_t n = 0;
	unsigned nid, z, t;

	for (nid = 0; nid < phys_nr_nodes(w.m.phys); nid++)
		for (z = 0; z < NR_ZONE_TYPES; z++)
			for (t = 0; t < NR_MIGRATETYPES; t++)
				n += zone_free_blocks(&phys_node(w.m.phys, nid)->zone[z],
						      PAGEBLOCK_ORDER, t) +
				     2 * zone_free_blocks(&phys_node(w.m.phys, nid)->zone[z],
							  MAX_ORDER, t);
	return n;
}

/* Little enough left, or cut up among the domains, that running out is no surprise. */
static inline bool memory_is_short(void)
{
	return phys_free_pages(w.m.phys) < (ARENA_BYTES >> ARENA_PAGE_SHIFT) / 3 ||
	       whole_blocks() < 24;
}

static inline bool excused(int r)
{
	if (r != ARENA_E_NO_MEMORY || !memory_is_short())
		return false;
	w.no_memory++;
	return true;
}

/* ---- where --------------------------------------------------------------------------------- */

static inline void note_region(struct mclient *mc, uint64_t start, uint64_t len)
{
	uint64_t i = below(NR_REGIONS);

	mc->region[i].start = start;
	mc->region[i].len = len;
}

static inline uint64_t random_len(void)
{
	unsigned kind = (unsigned)below(10);

	if (kind < 5)
		return PAGE(1 + below(16));
	if (kind < 8)
		return PAGE(1 + below(700));
	return LEAF(1 + below(3)) + (chance(50) ? PAGE(below(512)) : 0);
}

static inline void random_range(struct mclient *mc, uint64_t *start, uint64_t *len)
{
	uint64_t i = below(NR_REGIONS), pages = mc->region[i].len >> ARENA_PAGE_SHIFT;

	if (!pages) {
		*start = mc->base + LEAF(20000) + PAGE(below(2000));
		*len = random_len();
		return;
	}
	*start = mc->region[i].start;
	*len = mc->region[i].len;
	if (chance(12))
		return;
	*start += PAGE(below(pages));
	if (chance(10) && *start >= mc->base + LEAF(1))
		*start -= PAGE(below(32));
	*len = PAGE(1 + below(chance(70) ? MIN(pages, UINT64_C(40)) : pages + 8));
	if (chance(15))
		*start = ALIGN_DOWN(*start, ARENA_LEAF_SIZE);
	if (!mrange_in_window(mc, *start, *start + *len))
		*len = ARENA_PAGE_SIZE;
}

/* The direct map is not the program's to change. */
static inline bool meets_direct(const struct mclient *mc, uint64_t start, uint64_t len)
{
	return direct_contains(mc->c->mm, start, start + len);
}

static inline uint64_t random_addr(struct mclient *mc)
{
	uint64_t start, len, i;

	for (i = 0; i < 4; i++) { /* most of the time at something */
		random_range(mc, &start, &len);
		start += PAGE(below(len >> ARENA_PAGE_SHIFT));
		if (mpage_at(mc, start)->mapped)
			break;
	}
	return start;
}

/* ---- clients ------------------------------------------------------------------------------- */

static const gid_t some_groups[] = {50, 1000};

static inline void client_start(struct mclient *mc, uid_t uid, uint64_t base)
{
	memset(mc, 0, sizeof(*mc));
	mc->base = base;
	assert_int_equal(client_try_up(&w.m, uid, w.next_pid++, mc->base, &mc->c), 0);
	mc->brk = mc->c->mm->header->start_brk;
	/* Not every client knows of them. */
	if (mc->c->cred.pid % 3)
		client_use_zeros(mc->c);
	if (uid == 1002) {
		mc->c->cred.groups = some_groups;
		mc->c->cred.nr_groups = ARRAY_SIZE(some_groups);
	}
}

static inline void client_new(struct mclient *mc)
{
	static const uid_t uids[] = {1000, 1000, 1001, 1002, 0};
	uid_t uid = uids[below(ARRAY_SIZE(uids))];

	client_start(mc, uid,
		     chance(80) ? ARENA_WINDOW_BASE : ARENA_WINDOW_BASE + (UINT64_C(1) << 40));
	mc->deaf = chance(15);
}

static inline void client_end(struct mclient *mc)
{
	if (!mc->c)
		return;
	assert_true(client_check_tlb(mc->c));
	client_down(mc->c);
	mclient_clear(mc);
}

static inline void ack(struct mclient *mc, bool all)
{
	uint64_t head = mm_flush_posted(mc->c->mm);

	if (all) {
		client_ack_all(mc->c);
		assert_true(client_tlb_is_current(mc->c));
	} else if (head > mc->c->acked) {
		client_ack(mc->c, mc->c->acked + 1 + below(head - mc->c->acked));
		mm_flush_collect(mc->c->mm);
	}
}

/* A slow client goes on writing where its memory was: nobody may ever see it. */
static inline void scribble(struct mclient *mc)
{
	struct fake_client *c = mc->c;
	const struct tlb_item *t;
	pfn_t pfn = PFN_NONE;
	const struct page *page = NULL;
	size_t i;

	for (i = c->nr_tlb ? below(c->nr_tlb) : 0; i < c->nr_tlb; i++) {
		t = &c->tlb[i];
		pfn = t->pfn + (pfn_t)below((t->end - t->start) >> ARENA_PAGE_SHIFT);
		if (pfn_is_zeros(&w.m, pfn))
			continue;
		page = pfn_to_page(w.m.phys, compound_head(w.m.phys, pfn));
		if (t->write && (t->owner & (PG_ANON | PG_KERNEL)) && !page->mapcount)
			break;
	}
	if (i >= c->nr_tlb)
		return;
	assert_true(page->flags & PG_LIMBO);
	memset(domain_address(pfn_domain(w.m.phys, pfn), pfn), 0xee, ARENA_PAGE_SIZE);
	w.scribbles++;
}

/* ---- touching ------------------------------------------------------------------------------ */

static inline void check_content(struct mclient *mc, uint64_t addr, const uint8_t *at, bool whole)
{
	const struct content *want = mpage_content(mpage_at(mc, addr));
	uint64_t n, word, pos;

	for (n = 0; n < NR_WORDS; n++) {
		memcpy(&word, at + n * WORD_STEP, sizeof(word));
		if (word != want->word[n])
			fail_msg("mm %u: %#lx holds %lu, not %lu", mm_id(mc->c->mm),
				 (unsigned long)(addr + n * WORD_STEP), (unsigned long)word,
				 (unsigned long)want->word[n]);
		pos = n * WORD_STEP + sizeof(word);
		if (whole && !bytes_are_zero(at + pos, WORD_STEP - sizeof(word)))
			fail_msg("mm %u: %#lx holds what was never written", mm_id(mc->c->mm),
				 (unsigned long)addr);
	}
}

static inline void write_word(struct mpage *p, uint8_t *at)
{
	struct content *content;
	uint64_t n = below(NR_WORDS);

	if (p->object && !p->shared && !p->own)
		mpage_copy(p);
	/* What lies past the end in the last page is nobody's business. */
	if (p->object && !p->own && PAGE(p->pgoff) + n * WORD_STEP >= p->object->size)
		n = 0;
	content = mpage_content(p);
	content->word[n] = ++w.next_word;
	memcpy(at + n * WORD_STEP, &w.next_word, sizeof(w.next_word));
	w.writes++;
}

static inline void op_access(struct mclient *mc, uint64_t addr)
{
	static const uint32_t kinds[] = {PROT_READ, PROT_READ, PROT_WRITE, PROT_WRITE, PROT_EXEC};
	uint32_t access = kinds[below(ARRAY_SIZE(kinds))];
	struct mpage *p = mpage_at(mc, addr);
	struct fault_refusal want = mpage_refusal(p, access), got;
	uint8_t *at;

	if (access == PROT_EXEC && meets_direct(mc, addr, ARENA_PAGE_SIZE))
		return;
	at = client_access(mc->c, addr, access, (unsigned)below(4), &got);
	if (!at && !want.signo && got.signo == SIGBUS && excused(ARENA_E_NO_MEMORY))
		return;
	if (got.signo != want.signo || got.code != want.code)
		fail_msg("mm %u: access %u at %#lx: signal %d/%d, not %d/%d, %lu pages free",
			 mm_id(mc->c->mm), access, (unsigned long)addr, got.signo, got.code,
			 want.signo, want.code, (unsigned long)phys_free_pages(w.m.phys));
	w.refusals += !at;
	if (!at)
		return;
	/* A write fault copies, whether or not something is written then. */
	if (access == PROT_WRITE && p->object && !p->shared && !p->own)
		mpage_copy(p);
	check_content(mc, addr, at, chance(12));
	if (access == PROT_WRITE && chance(90))
		write_word(p, at);
}

static inline void op_touch(struct mclient *mc)
{
	uint64_t addr = random_addr(mc), n = 1 + (chance(30) ? below(24) : 0);
	uint64_t step = chance(20) ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE;

	for (; n-- && mrange_in_window(mc, addr, addr + ARENA_PAGE_SIZE); addr += step) {
		op_access(mc, addr);
		if (!mpage_at(mc, addr)->mapped)
			return;
	}
}

/* Which private pages have a copy is the room's choice where populating failed half-way. */
static inline void sync_copies(struct mclient *mc, uint64_t start, uint64_t end)
{
	for (; start < end; start += ARENA_PAGE_SIZE) {
		struct mpage *p = mpage_at(mc, start);
		pfn_t pfn;

		if (!p->mapped || !p->object || p->shared || p->own)
			continue;
		pfn = client_pfn(mc->c, start);
		if (pfn != PFN_NONE &&
		    (pfn_to_page(w.m.phys, compound_head(w.m.phys, pfn))->flags & PG_ANON))
			mpage_copy(p);
	}
}

/* What is shared is copied when the client has flushed: ask again. */
static inline bool flushed_again(struct mclient *mc, int *r)
{
	if (*r == ARENA_E_WAIT_IO) {
		struct io_wait wait = {0};

		virt_io_wait(w.m.virt, &wait);
		if (wait.pending)
			fake_others_flush();
		*r = 0;
		return true;
	}
	if (*r != ARENA_E_AGAIN)
		return false;
	client_ack(mc->c, mm_flush_posted(mc->c->mm));
	*r = 0;
	return true;
}

static inline void op_populate(struct mclient *mc)
{
	uint64_t start, len, at, next, stop;
	bool write = chance(50);
	uint32_t access = write ? PROT_WRITE : PROT_READ;
	int r = 0, want = 0;

	random_range(mc, &start, &len);
	for (stop = start; stop < start + len && !want; stop += ARENA_PAGE_SIZE) {
		struct fault_refusal refusal = mpage_refusal(mpage_at(mc, stop), access);

		if (refusal.signo)
			want = refusal.signo == SIGBUS       ? ARENA_E_FAULT
			       : refusal.code == SEGV_MAPERR ? ARENA_E_NOT_MAPPED
							     : ARENA_E_ACCESS;
	}
	for (at = start; at < start + len && !r; at = next) {
		next = at;
		r = vm_populate(mc->c->mm, at, start + len - at,
				write ? POPULATE_WRITE : POPULATE_READ, (unsigned)below(4), &next);
		if (flushed_again(mc, &r))
			continue;
		assert_true(r || next > at);
	}
	sync_copies(mc, start, start + len);
	if (excused(r))
		return;
	assert_int_equal(r, want);
	for (at = start; at < start + len && !r; at += ARENA_PAGE_SIZE) {
		unsigned level;
		struct mpage *p = mpage_at(mc, at);

		assert_true(client_permits(client_walk(mc->c, at, &level), access));
		assert_true(!write || !p->object || p->shared || p->own);
		if (chance(3))
			check_content(mc, at, client_frame(mc->c, at), false);
	}
}

#endif
