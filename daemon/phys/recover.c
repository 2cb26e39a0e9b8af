/* SPDX-License-Identifier: MIT */
/*
 * recover.c - the first half of recovery: read what another worker left, and make it sound.
 *
 *	state file -> layout, domains -> sections -> pageblock owners -> frames
 *
 * When phys_recover() returns, every head of a block in use has an order and an owner that can be,
 * no frame inside a block looks like a head, and everything a crash leaves half done in mem_map is
 * cleared. What cannot come from a crash is repaired in favour of what can be proved, with a line in
 * the log; a frame that proves nothing is free, and a client that still has an entry for it is found
 * out by the room above. The heads of free blocks keep their flags for rebuild.c, which makes lists
 * of them: PG_BUDDY and PG_PCP heads that overlap nothing, with PG_ZEROED where it can be believed.
 *
 * What a crash can leave, and what makes of it what is true:
 * - tails of a block that was being split, with a refcount: the head's order is stored last, so the
 *   block is whole and they are cleared;
 * - a block that was being freed or claimed, refcount 0 and flags of its use: free;
 * - a pageblock on its way to a domain, or back: free, owned by whom its record names;
 * - a section that is online and not initialised: initialised now, unless it is still deferred;
 * - heads of free blocks in a section that went offline: cleared.
 *
 * Here refs and maps are counted in lru_next and lru_prev of heads in use, which are on no list.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/phys/recovery.h"
#include "daemon/store/store.h"
#include "daemon/sync/lock.h"

#define COMPLAINTS 16 /* lines about damage; the rest is only counted */

void recovery_damage(struct phys *p, const char *fmt, ...)
{
	char text[160];
	va_list ap;

	if (++p->recovery->stats.damaged > COMPLAINTS)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_warning("recovery: %s%s", text,
		    p->recovery->stats.damaged == COMPLAINTS ? " (no more lines about damage)"
							     : "");
}

/* ---- layout and domains ------------------------------------------------------------- */

void phys_recover_topology(const struct state *s, struct numa_topology *t)
{
	const struct state_geometry *g = s->geometry;

	*t = (struct numa_topology){
		.nr_nodes = g->nr_nodes, .nr_cpus = g->nr_cpus, .simulated = g->simulated};
	memcpy(t->distance, g->distance, sizeof(t->distance));
	memcpy(t->cpu_node, g->cpu_node, sizeof(t->cpu_node));
}

static int recover_layout(struct phys *p)
{
	const struct state_geometry *g = p->state->geometry;
	struct phys_range reserved[PHYS_MAX_RANGES];

	if (p->nr_nodes != g->nr_nodes)
		return ARENA_E_INVALID;
	for (unsigned n = 0; n < p->nr_nodes; n++)
		phys_setup_node(p, n, g->node[n].start, g->node[n].zone_end);
	p->nr_frames = p->state->header->nr_frames;
	for (unsigned i = 0; i < g->nr_reserved; i++)
		reserved[i] = (struct phys_range){g->reserved[i].base, g->reserved[i].size};
	return phys_setup_memblock(p, reserved, g->nr_reserved);
}

static struct state_scan domain_scan(const struct phys *p)
{
	return (struct state_scan){
		.state = p->state, .region = STATE_DOMAINS, .size = sizeof(struct domain_record)};
}

static int recover_domains(struct phys *p)
{
	struct state_header *h = p->state->header;
	struct phys_recover_stats *stats = &p->recovery->stats;
	uint32_t next = h->next_domain, slot;
	struct state_scan scan = domain_scan(p);

	while (state_scan_next(&scan, &slot)) {
		const struct domain_record *rec = &p->state->domains[slot];
		int r;

		if (!slot || rec->kind == DOMAIN_FREE)
			continue;
		r = domain_recover(p, rec, slot);
		if (r == ARENA_E_INVALID) {
			stats->lost_domains++;
			continue;
		}
		if (r)
			return r;
		stats->domains++;
		next = MAX(next, rec->id + 1);
	}
	if (next != h->next_domain) {
		recovery_damage(p, "domain ids were to be used again from %u on", h->next_domain);
		truth_store(&h->next_domain, next);
	}
	return 0;
}

/* Their blocks are nobody's by now. */
static void forget_lost_domains(struct phys *p)
{
	struct state_scan scan = domain_scan(p);
	uint32_t slot;

	while (state_scan_next(&scan, &slot)) {
		struct domain_record *rec = &p->state->domains[slot];

		if (rec->kind == DOMAIN_FREE || p->domains[slot])
			continue;
		truth_store(&rec->kind, (uint32_t)DOMAIN_FREE);
		/* A record that lies about its id must not take the file of another with it. */
		if (rec->id && !domain_by_id(p, rec->id))
			store_remove_number("arena", rec->id);
	}
}

/* ---- sections ----------------------------------------------------------------------- */

/* What the pageblocks say of a section: an initialised one has movable ones, at the least. */
static void section_evidence(const struct phys *p, unsigned section, bool *used, bool *blank)
{
	*used = false;
	*blank = true;
	for (pfn_t b = section_start(p, section); b < section_end(p, section);
	     b += PAGEBLOCK_PAGES) {
		const struct pageblock *pb = pfn_block(p, b);

		*used |= pb->domain != 0;
		*blank &= !pb->domain && !pb->migratetype && !pb->flags;
	}
}

static void recover_section(struct phys *p, unsigned section)
{
	struct section_record *rec = &p->state->sections[section];
	uint8_t node = zone_of_pfn(p, section_start(p, section))->node;
	bool used, blank;

	if (rec->state != SECTION_ONLINE && rec->state != SECTION_OFFLINE) {
		recovery_damage(p, "section %u: state %u", section, rec->state);
		truth_store(&rec->state, (uint8_t)SECTION_ONLINE);
	}
	if (rec->node != node) {
		recovery_damage(p, "section %u: node %u", section, rec->node);
		truth_store(&rec->node, node);
	}
	if (!rec->initialised)
		return;
	section_evidence(p, section, &used, &blank);
	/* A crash may leave one free block unmovable: one that was to be claimed. */
	blank &= p->section_pages > PAGEBLOCK_PAGES;
	if (rec->initialised != 1 || blank) {
		recovery_damage(p, "section %u: initialised %u", section, rec->initialised);
		truth_store(&rec->initialised, (uint8_t)!blank);
	}
	if (rec->state == SECTION_OFFLINE && used) {
		recovery_damage(p, "section %u is offline and in use", section);
		truth_store(&rec->state, (uint8_t)SECTION_ONLINE);
	}
}

static bool initialised(const struct phys *p, unsigned section)
{
	return p->state->sections[section].initialised;
}

/* Deferred is what lies behind the last initialised section. */
static void recover_deferred(struct zone *z)
{
	struct zone_private *zp = zone_private(z);
	const struct phys *p = z->phys;
	pfn_t first, end;

	if (!zone_deferrable(z, &first, &end))
		return;
	z->deferred = first;
	zp->deferred_end = end;
	for (pfn_t pfn = first; pfn < end; pfn += (pfn_t)p->section_pages)
		if (initialised(p, pfn_section(p, pfn)))
			z->deferred = pfn + (pfn_t)p->section_pages;
	if (z->deferred >= end)
		z->deferred = zp->deferred_end = z->end;
}

/* Before the deferred ones all that are online are initialised, at the latest now. */
static void finish_section(struct phys *p, unsigned section)
{
	pfn_t start = section_start(p, section);
	const struct zone *z = zone_of_pfn(p, start);
	struct section_record *rec = &p->state->sections[section];
	bool used, blank;

	if (rec->state != SECTION_ONLINE || rec->initialised ||
	    (start >= z->deferred && start < p->zp[z->index].deferred_end))
		return;
	section_evidence(p, section, &used, &blank);
	if (!used) {
		section_fill(p, section);
		return;
	}
	recovery_damage(p, "section %u is in use and not initialised", section);
	truth_store(&rec->initialised, (uint8_t)1);
}

static void recover_sections(struct phys *p)
{
	for (unsigned s = 0; s < p->nr_sections; s++)
		recover_section(p, s);
	for (unsigned i = 0; i < p->nr_zones; i++)
		recover_deferred(&p->node[i / NR_ZONE_TYPES].zone[i % NR_ZONE_TYPES]);
	for (unsigned s = 0; s < p->nr_sections; s++)
		finish_section(p, s);
}

/* ---- pageblocks ----------------------------------------------------------------------- */

/* Neighbours have the same owner as a rule. */
static struct domain *find_domain(struct phys *p, uint32_t id)
{
	struct recovery *r = p->recovery;

	if (!id)
		return p->domains[0];
	if (r->last_id != id) {
		r->last_id = id;
		r->last_domain = domain_by_id(p, id);
	}
	return r->last_domain;
}

static int recover_block(struct phys *p, pfn_t b, bool offline)
{
	struct pageblock *pb = pfn_block(p, b);
	struct zone *z = zone_of_pfn(p, b);
	struct domain *d = find_domain(p, pb->domain);

	if (pb->migratetype > MIGRATE_HIGHATOMIC) {
		recovery_damage(p, "pageblock at %u: type %u", b, pb->migratetype);
		truth_store(&pb->migratetype, (uint8_t)MIGRATE_MOVABLE);
	}
	if (pb->flags & ~PB_BACKED || pb->reserved) {
		recovery_damage(p, "pageblock at %u: flags %#x", b, pb->flags);
		truth_store(&pb->flags, (uint8_t)(pb->flags & PB_BACKED));
		truth_store(&pb->reserved, (uint16_t)0);
	}
	if (!d || (d->slot && (offline || block_reserved(p, b)))) {
		if (d || !p->recovery->stats.lost_domains)
			recovery_damage(p, "pageblock at %u: owner %u", b, pb->domain);
		d = p->domains[0];
	}
	p->block_slot[b >> PAGEBLOCK_ORDER] = (uint16_t)d->slot;
	if (!d->slot)
		return 0;
	if (!domain_zone(d, z))
		return ARENA_E_NO_MEMORY;
	d->nr_blocks++;
	d->nodes |= UINT64_C(1) << z->node;
	return 0;
}

/* No frame of it is in use: it is a hole of nobody. Type and flags before the owner, as ever. */
static void disown_block(struct phys *p, pfn_t b)
{
	struct pageblock *pb = pfn_block(p, b);

	if (!pb->domain && pb->flags)
		recovery_damage(p, "pageblock at %u is nobody's: flags %#x", b, pb->flags);
	if (pb->flags)
		truth_store(&pb->flags, (uint8_t)0);
	if (pb->migratetype != MIGRATE_MOVABLE)
		truth_store(&pb->migratetype, (uint8_t)MIGRATE_MOVABLE);
	if (pb->domain)
		truth_store(&pb->domain, 0u);
}

/* ---- frames --------------------------------------------------------------------------- */

/* The scan's place: the free block it is in, and where the last block in use ends. */
struct scan {
	struct phys *p;
	pfn_t free_head, free_end;
	pfn_t used_end;
};

static void unuse_frame(struct page *page, uint32_t flags)
{
	if (page->refcount)
		truth_store(&page->refcount, 0u);
	if (page->flags != flags)
		truth_store(&page->flags, flags);
}

/* A free block that overlaps something proves nothing. */
static void distrust_free_block(struct scan *s, pfn_t pfn)
{
	struct page *head = &s->p->mem_map[s->free_head];

	recovery_damage(s->p, "frame %u looks like a head inside the free block at %u", pfn,
			s->free_head);
	page_set_free_flags(head, 0, 0);
	s->free_end = 0;
}

static bool block_fits(const struct phys *p, pfn_t pfn, unsigned order)
{
	pfn_t last = pfn + (1u << order) - 1;

	return order <= MAX_ORDER && IS_ALIGNED(pfn, 1u << order) && last < p->nr_frames;
}

/* Can the block in use at pfn be one? Both halves of an order-10 block have the same owner. */
static bool used_block_ok(struct phys *p, pfn_t pfn, uint32_t flags, unsigned order)
{
	uint32_t owner = flags & PG_OWNER;

	if (!owner || owner & (owner - 1) || !p->block_slot[pfn >> PAGEBLOCK_ORDER] ||
	    !block_fits(p, pfn, order))
		return false;
	if (order > PAGEBLOCK_ORDER) {
		pfn_t half = pfn + PAGEBLOCK_PAGES;
		const struct section_record *rec = &p->state->sections[pfn_section(p, half)];

		return rec->state == SECTION_ONLINE && rec->initialised &&
		       zone_of_pfn(p, half) == zone_of_pfn(p, pfn) &&
		       p->block_slot[half >> PAGEBLOCK_ORDER] ==
			       p->block_slot[pfn >> PAGEBLOCK_ORDER];
	}
	return true;
}

/* Inside a block in use. A split that a crash cut off has written some as heads, in order. */
static void scan_tails(struct phys *p, pfn_t head, unsigned order, uint32_t place)
{
	uint32_t split = p->mem_map[head].flags & ~(PG_ORDER_MASK << PG_ORDER_SHIFT);
	const struct page *first = &p->mem_map[head];

	for (pfn_t pfn = head + 1; pfn < head + (1u << order); pfn++) {
		struct page *page = &p->mem_map[pfn];

		if (likely(!page->refcount && page->flags == place))
			continue;
		if (page->flags != split || page->mapping != first->mapping)
			recovery_damage(p,
					"frame %u inside the block at %u: flags %#x, %u references",
					pfn, head, page->flags, page->refcount);
		unuse_frame(page, place);
	}
}

static pfn_t scan_used(struct scan *s, pfn_t pfn, uint32_t place)
{
	struct phys *p = s->p;
	struct page *page = &p->mem_map[pfn];
	uint32_t kept = PG_OWNER | PG_LIMBO | PG_HOLE | PG_DIRTY | PG_WRITEBACK | PG_REDIRTY |
			PG_FROZEN | PG_MLOCKED | PG_PINNED | PG_ORDER_MASK << PG_ORDER_SHIFT;
	unsigned order = page_order(page);

	if (unlikely(pfn < s->free_end))
		distrust_free_block(s, pfn);
	if (unlikely(!used_block_ok(p, pfn, page->flags, order))) {
		/* Those of a lost domain have their line already. */
		if (p->block_slot[pfn >> PAGEBLOCK_ORDER] || !pfn_block(p, pfn)->domain)
			recovery_damage(p, "frame %u cannot be in use: flags %#x, %u references",
					pfn, page->flags, page->refcount);
		unuse_frame(page, place);
		return pfn + 1;
	}
	if (unlikely((page->flags & ~kept) != place)) {
		recovery_damage(p, "frame %u in use: flags %#x", pfn, page->flags);
		truth_store(&page->flags, (page->flags & kept) | place);
	}
	page->lru_next = page->lru_prev = 0;
	if (order)
		scan_tails(p, pfn, order, place);
	return pfn + (1u << order);
}

static void scan_free(struct scan *s, pfn_t pfn, uint32_t place)
{
	struct phys *p = s->p;
	struct page *page = &p->mem_map[pfn];
	uint32_t state = page->flags & (PG_BUDDY | PG_PCP | PG_ISOLATED);
	unsigned order = page_order(page);

	if (likely(page->flags == place))
		return;
	if (state && pfn < s->free_end) {
		distrust_free_block(s, pfn);
		state = 0;
	}
	/* What kzerod had in hand is half written; everything else that is no list's is a leftover. */
	if ((state != PG_BUDDY && state != PG_PCP) || !block_fits(p, pfn, order) ||
	    (state == PG_PCP && order)) {
		unuse_frame(page, place);
		return;
	}
	unuse_frame(page, place | state | (page->flags & PG_ZEROED) | order << PG_ORDER_SHIFT);
	s->free_head = pfn;
	s->free_end = pfn + (1u << order);
}

static uint32_t block_place(struct phys *p, pfn_t b)
{
	const struct zone *z = zone_of_pfn(p, b);

	return (uint32_t)z->node << PG_NODE_SHIFT | z->type;
}

static void scan_reserved(struct phys *p, pfn_t b, uint32_t place)
{
	for (pfn_t pfn = b; pfn < b + PAGEBLOCK_PAGES; pfn++) {
		struct page *page = &p->mem_map[pfn];

		if (page->refcount || page->flags != (place | PG_RESERVED))
			recovery_damage(p, "frame %u is reserved: flags %#x, %u references", pfn,
					page->flags, page->refcount);
		unuse_frame(page, place | PG_RESERVED);
	}
}

static void scan_block(struct scan *s, pfn_t b)
{
	struct phys *p = s->p;
	uint32_t place = block_place(p, b);
	pfn_t end = b + PAGEBLOCK_PAGES, pfn = MAX(b, s->used_end);

	if (block_reserved(p, b)) {
		scan_reserved(p, b, place);
	} else {
		while (pfn < end) {
			if (p->mem_map[pfn].refcount)
				pfn = scan_used(s, pfn, place);
			else
				scan_free(s, pfn++, place);
		}
		s->used_end = pfn;
	}
	if (!p->block_slot[b >> PAGEBLOCK_ORDER])
		disown_block(p, b);
}

/* Offline: all free, nobody's, and on no list. */
static void clear_offline(struct phys *p, unsigned section)
{
	for (pfn_t b = section_start(p, section); b < section_end(p, section);
	     b += PAGEBLOCK_PAGES) {
		uint32_t place = block_place(p, b) | (block_reserved(p, b) ? PG_RESERVED : 0);

		for (pfn_t pfn = b; pfn < b + PAGEBLOCK_PAGES; pfn++)
			unuse_frame(&p->mem_map[pfn], place);
		disown_block(p, b);
	}
}

static int recover_blocks(struct phys *p)
{
	for (unsigned s = 0; s < p->nr_sections; s++) {
		bool offline = p->state->sections[s].state == SECTION_OFFLINE;

		for (pfn_t b = section_start(p, s); initialised(p, s) && b < section_end(p, s);
		     b += PAGEBLOCK_PAGES) {
			int r = recover_block(p, b, offline);

			if (r)
				return r;
		}
	}
	return 0;
}

static void recover_frames(struct phys *p)
{
	struct scan scan = {.p = p};

	for (unsigned s = 0; s < p->nr_sections; s++) {
		pfn_t start = section_start(p, s), end = section_end(p, s);

		if (!initialised(p, s))
			continue;
		if (p->state->sections[s].state == SECTION_OFFLINE) {
			clear_offline(p, s);
			continue;
		}
		/* One call instead of a page fault for each 128 frames; a failure costs only those. */
		os_populate(&p->mem_map[start], (end - start) * sizeof(struct page));
		for (pfn_t b = start; b < end; b += PAGEBLOCK_PAGES)
			scan_block(&scan, b);
	}
}

/* All frames are free and nobody's until rebuild.c has counted those that are not. */
static void count_sections(struct phys *p)
{
	struct domain *d;

	for (unsigned s = 0; s < p->nr_sections; s++)
		if (p->state->sections[s].state == SECTION_ONLINE)
			section_count(p, s);
	TAILQ_FOREACH(d, &p->live, link)
		p->nr_unowned -= d->nr_blocks << PAGEBLOCK_ORDER;
	phys_setup_zonelists(p);
}

static int take_over(struct phys *p)
{
	int r = recover_layout(p);

	if (!r)
		r = phys_use_state(p, p->state);
	if (!r)
		r = recover_domains(p);
	if (r)
		return r;
	recover_sections(p);
	r = recover_blocks(p);
	if (r)
		return r;
	recover_frames(p);
	forget_lost_domains(p);
	count_sections(p);
	return 0;
}

int phys_recover(const struct phys_config *config, struct state *s, struct phys **out)
{
	struct phys *p;
	int r;

	CONTROL_THREAD();
	p = phys_new(config, s->header->section_pages);
	if (!p) {
		state_close(s);
		return ARENA_E_NO_MEMORY;
	}
	p->state = s;
	p->recovery = mem_alloc(sizeof(*p->recovery));
	r = p->recovery ? take_over(p) : ARENA_E_NO_MEMORY;
	if (r) {
		phys_destroy(p);
		return r;
	}
	*out = p;
	return 0;
}

/* ---- references ----------------------------------------------------------------------- */

static struct page *head_in_use(const struct phys *p, pfn_t head)
{
	const struct section_record *rec;

	if (head >= p->nr_frames)
		return NULL;
	rec = &p->state->sections[pfn_section(p, head)];
	if (rec->state != SECTION_ONLINE || !rec->initialised || !p->mem_map[head].refcount)
		return NULL;
	return &p->mem_map[head];
}

bool phys_recover_ref(struct phys *p, pfn_t head, bool maps)
{
	struct page *page = head_in_use(p, head);

	if (!page || page->lru_next == UINT32_MAX)
		return false;
	page->lru_next++;
	page->lru_prev += maps;
	return true;
}

void phys_recover_unref(struct phys *p, pfn_t head, bool maps)
{
	struct page *page = head_in_use(p, head);

	BUG_ON(!page || !page->lru_next || (maps && !page->lru_prev));
	page->lru_next--;
	page->lru_prev -= maps;
}

bool phys_recover_referenced(struct phys *p, pfn_t head)
{
	const struct page *page = head_in_use(p, head);

	return page && page->lru_next;
}
