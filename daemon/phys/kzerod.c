/* SPDX-License-Identifier: MIT */
/*
 * kzerod.c - free blocks are zeroed in the background, so that a fault rarely waits for it.
 *
 * The control thread sets a batch of blocks aside (off their lists, PG_ISOLATED, still counted
 * free) and queues it; the worker writes zeros, or has the host back a hole; the control thread
 * puts the blocks on the zeroed lists, in ascending order, and sets the next batch aside. While a
 * batch is under way its domain cannot end and its blocks cannot be given to anybody. But the worker runs at
 * the lowest priority, and on a busy machine hardly ever: who is short of memory takes back the blocks that it
 * has not begun, and who has to wait for the one it has begun raises its priority for that.
 *
 * A domain becomes a candidate when its lists of order >= 9 change, and stops being one when its
 * pool is full or has nothing left to zero; without candidates and batches kzerod sleeps. When
 * the next batch is started is the caller's to decide: kzerod_need() says how badly it is wanted.
 */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/os.h"
#include "daemon/phys/internal.h"
#include "daemon/sync/lock.h"

#define KZ_PIECE (UINT64_C(256) << 10) /* between two looks at whether somebody waits */
#define KZ_LOW_PART 4 /* of a pool: below, it is filled without waiting for a quiet moment */

void kzerod_note(struct domain *d)
{
	if (d->kz_queued)
		return;
	d->kz_queued = true;
	TAILQ_INSERT_TAIL(&d->phys->kz.candidates, d, kz_link);
}

void kzerod_forget(struct domain *d)
{
	if (!d->kz_queued)
		return;
	d->kz_queued = false;
	TAILQ_REMOVE(&d->phys->kz.candidates, d, kz_link);
}

/* False: the block has another owner. */
static bool change_state(struct kz_block *k, uint8_t to)
{
	uint8_t waits = KZ_WAITS;

	return __atomic_compare_exchange_n(&k->state, &waits, to, false, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

static bool zero_block(const struct kz_batch *b, char *addr, uint64_t size)
{
	for (uint64_t done = 0; done < size; done += MIN(KZ_PIECE, size)) {
		if (load_relaxed(&b->hurry))
			return false;
		memset(addr + done, 0, MIN(KZ_PIECE, size));
	}
	return true;
}

static void kz_run(struct work *w)
{
	struct kz_batch *b = container_of(w, struct kz_batch, work);

	for (unsigned i = 0; i < b->nr; i++) {
		struct kz_block *k = &b->block[i];
		char *addr = b->map + ((uint64_t)k->pfn << ARENA_PAGE_SHIFT);
		uint64_t size = (UINT64_C(1) << k->order) << ARENA_PAGE_SHIFT;

		if (!change_state(k, KZ_TAKEN))
			continue;
		if (k->hole)
			k->failed = os_populate(addr, size) < 0;
		else
			k->undone = !zero_block(b, addr, size);
	}
}

/* Pages that the domain's pool should hold. */
static uint64_t pool_target(const struct phys *p)
{
	uint64_t pool = state_tunable(p->state, TUNABLE_ZERO_POOL_KBYTES) / 4;
	uint64_t share = phys_free_pages(p) * 3 / 4 / MAX(p->nr_active, 1u);

	return MIN(pool, share);
}

static void isolate(struct phys *p, struct kz_batch *b, pfn_t pfn, unsigned order)
{
	struct page *page = &p->mem_map[pfn];
	struct zone_private *zp = zone_private(page_zone(p, page));
	enum content c;

	buddy_take(p, pfn, pfn, order, &c);
	b->block[b->nr++] =
		(struct kz_block){.pfn = pfn, .order = (uint8_t)order, .hole = c == CONTENT_HOLE};
	if (c == CONTENT_HOLE)
		block_mark(p, pfn, order, PB_BACKED);
	page_set_free_flags(page, PG_ISOLATED, order);
	zp->isolated_blocks[order][pfn_block(p, pfn)->migratetype]++;
	b->domain->nr_isolated += UINT64_C(1) << order;
	b->domain->zone[page_zone(p, page)->index]->isolated_pages += UINT64_C(1) << order;
}

/* Set blocks of one content aside, as far as the batch and `need` pages go. */
static void gather(struct phys *p, struct kz_batch *b, const struct zone *z, enum content c,
		   uint64_t *need)
{
	struct domain_zone *dz = b->domain->zone[z->index];

	for (unsigned o = PAGEBLOCK_ORDER; dz && o < NR_ORDERS; o++) {
		for (unsigned t = 0; t < NR_PCP_TYPES; t++) {
			struct free_list *l = &dz->list[o][t][c];

			while (l->count && b->nr < KZ_BATCH_BLOCKS && *need >= PAGEBLOCK_PAGES) {
				unsigned order = *need >> o ? o : PAGEBLOCK_ORDER;

				*need -= UINT64_C(1) << order;
				isolate(p, b, l->head, order);
			}
		}
	}
}

/* User memory comes from HIGHMEM, or from what a node has instead. */
static bool zone_for_users(const struct phys *p, const struct zone *z)
{
	return z->type == ZONE_HIGHMEM || !p->node[z->node].zone[ZONE_HIGHMEM].managed;
}

static void gather_unowned(struct phys *p, struct kz_batch *b, struct zone *z, uint64_t *need)
{
	while (b->nr < KZ_BATCH_BLOCKS && *need >= PAGEBLOCK_PAGES) {
		if (p->nr_unowned <= p->managed / 4 + PAGEBLOCK_PAGES ||
		    !block_claim(p, b->domain, z, PAGEBLOCK_ORDER, MIGRATE_MOVABLE, PFN_NONE))
			return;
		gather(p, b, z, CONTENT_HOLE, need);
	}
}

/* What one node lacks of its share of the pool: an allocation looks near its CPU first. */
static uint64_t node_need(const struct phys *p, const struct domain *d, const struct node *node)
{
	uint64_t target = pool_target(p) / (unsigned)MAX(__builtin_popcountll(d->nodes), 1),
		 have = 0;

	for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
		const struct domain_zone *dz = d->zone[node->zone[t].index];

		if (dz)
			have += dz->zeroed_pages + dz->isolated_pages;
	}
	return target > have ? target - have : 0;
}

/* From HIGHMEM down, as allocations go. */
static void fill_from_node(struct phys *p, struct kz_batch *b, struct node *node)
{
	bool holes = clock_now() >= p->kz.populate_after;
	uint64_t need = node_need(p, b->domain, node);

	for (unsigned t = NR_ZONE_TYPES; t--;)
		gather(p, b, &node->zone[t], CONTENT_DIRTY, &need);
	for (unsigned t = NR_ZONE_TYPES; holes && t--;)
		gather(p, b, &node->zone[t], CONTENT_HOLE, &need);
	for (unsigned t = NR_ZONE_TYPES; holes && b->domain->active && t--;)
		if (zone_for_users(p, &node->zone[t]))
			gather_unowned(p, b, &node->zone[t], &need);
}

static bool fill_batch(struct phys *p, struct kz_batch *b, struct domain *d)
{
	unsigned first = p->cpu_node[d->last_cpu % NUMA_MAX_CPUS];

	b->domain = d;
	b->map = d->map;
	for (unsigned i = 0; i < p->nr_nodes; i++) {
		unsigned n = (first + i) % p->nr_nodes;

		if (d->nodes >> n & 1)
			fill_from_node(p, b, &p->node[n]);
	}
	return b->nr;
}

static void start_batches(struct phys *p)
{
	struct domain *d;

	for (unsigned i = 0; i < KZ_BATCHES; i++) {
		struct kz_batch *b = &p->kz.batch[i];

		if (b->nr)
			continue;
		while ((d = TAILQ_FIRST(&p->kz.candidates))) {
			bool found = d->refs && fill_batch(p, b, d);

			kzerod_forget(d);
			if (!found)
				continue;
			b->work.run = kz_run;
			b->hurry = false;
			workqueue_queue(p->kz.queue, &b->work);
			kzerod_note(d);
			break;
		}
	}
}

static void put_back(struct phys *p, const struct kz_block *k)
{
	struct page *page = &p->mem_map[k->pfn];
	struct zone_private *zp = zone_private(page_zone(p, page));
	struct domain *d = block_owner(p, k->pfn);
	enum content c = CONTENT_ZEROED;
	bool dropped = load_relaxed(&k->state) == KZ_DROPPED;

	zp->isolated_blocks[k->order][pfn_block(p, k->pfn)->migratetype]--;
	d->nr_isolated -= UINT64_C(1) << k->order;
	d->zone[page_zone(p, page)->index]->isolated_pages -= UINT64_C(1) << k->order;
	page_set_free_flags(page, 0, 0);
	if (k->hole && (k->failed || dropped)) {
		block_unback(p, k->pfn, k->order);
		c = block_content(p, k->pfn);
	} else if (k->undone || dropped) {
		c = CONTENT_DIRTY;
	}
	if (k->failed) {
		p->kz.populate_after = clock_now() + NSEC_PER_SEC;
		log_info("kzerod: the host has no memory to back free blocks with");
	} else if (c == CONTENT_ZEROED) {
		state_event(p->state, EV_ARENA_ZEROED_BACKGROUND, UINT64_C(1) << k->order);
	}
	buddy_free(p, k->pfn, k->order, c);
}

void kzerod_take_back(struct phys *p)
{
	struct work *w, *next;

	CONTROL_THREAD();
	if (!p->kz.queue)
		return;
	for (w = workqueue_completed(p->kz.queue); w; w = next) {
		struct kz_batch *b = container_of(w, struct kz_batch, work);

		next = w->next;
		for (unsigned i = 0; i < b->nr; i++)
			if (load_relaxed(&b->block[i].state) != KZ_DROPPED)
				put_back(p, &b->block[i]);
		b->nr = 0;
		if (b->domain)
			domain_try_end(b->domain);
	}
}

static void drop_batch(struct phys *p, struct kz_batch *b)
{
	unsigned left = 0;

	for (unsigned i = 0; i < b->nr; i++) {
		struct kz_block *k = &b->block[i];

		if (change_state(k, KZ_DROPPED))
			put_back(p, k);
		else
			left += load_relaxed(&k->state) == KZ_TAKEN;
	}
	if (!left && b->domain)
		domain_try_end(b->domain), b->domain = NULL;
}

void kzerod_drop(struct phys *p)
{
	CONTROL_THREAD();
	kzerod_take_back(p);
	for (unsigned i = 0; i < KZ_BATCHES; i++)
		if (p->kz.batch[i].nr)
			drop_batch(p, &p->kz.batch[i]);
}

void kzerod_wait(struct phys *p)
{
	bool begun = false;

	kzerod_drop(p);
	for (unsigned i = 0; i < KZ_BATCHES; i++) {
		begun |= p->kz.batch[i].nr && p->kz.batch[i].domain;
		store_relaxed(&p->kz.batch[i].hurry, true);
	}
	if (!begun)
		return;
	workqueue_flush(p->kz.queue);
	kzerod_take_back(p);
}

enum kzerod_need kzerod_need(const struct phys *p)
{
	const struct domain *d;
	bool room = false;

	for (unsigned i = 0; i < KZ_BATCHES; i++)
		room |= !p->kz.batch[i].nr;
	if (!p->kz.queue || !room || TAILQ_EMPTY(&p->kz.candidates))
		return KZEROD_NONE;
	TAILQ_FOREACH(d, &p->kz.candidates, kz_link)
		if (d->refs && d->zeroed_block_pages < pool_target(p) / KZ_LOW_PART)
			return KZEROD_NOW;
	return KZEROD_LATER;
}

void kzerod_collect(struct phys *p)
{
	kzerod_take_back(p);
	if (!p->kz.queue)
		return;
	if (!TAILQ_EMPTY(&p->kz.candidates))
		start_batches(p);
}

int kzerod_start(struct phys *p)
{
	int r;

	if (p->kz.queue)
		return 0;
	r = workqueue_create("kzerod", &p->kz.queue);
	if (r)
		return r;
	kzerod_collect(p);
	return 0;
}

void kzerod_stop(struct phys *p)
{
	kzerod_wait(p);
	if (p->kz.queue && workqueue_pending(p->kz.queue)) {
		workqueue_flush(p->kz.queue);
		kzerod_take_back(p);
	}
	p->kz.queue = workqueue_destroy(p->kz.queue);
}

int kzerod_eventfd(const struct phys *p)
{
	return p->kz.queue ? workqueue_eventfd(p->kz.queue) : -1;
}

bool kzerod_idle(struct phys *p)
{
	return !p->kz.queue || (!workqueue_pending(p->kz.queue) && TAILQ_EMPTY(&p->kz.candidates));
}

uint64_t kzerod_cpu_time(struct phys *p)
{
	return p->kz.queue ? workqueue_cpu_time(p->kz.queue) : 0;
}
