/* SPDX-License-Identifier: MIT */
/*
 * phys_world.h - an arena that dies: daemon/phys beside a naive model of what is in use.
 *
 * The model plays the rooms above. It notes a reference after a block was claimed for it and forgets
 * one before it is dropped, as page tables do, so at any store it says what must still be there after
 * the worker died at that store. world_die_after() makes the worker die at the Nth store to the
 * truth: the code under test is left by longjmp, its memory stays as it was (leaked, in a forked
 * child), and world_recover() builds a new one from what the store kept.
 */
#ifndef PHYS_WORLD_H
#define PHYS_WORLD_H

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/truth.h"
#include "daemon/phys/internal.h"
#include "daemon/store/store.h"
#include "daemon/sync/lock.h"
#include "phys_test.h"

/* In a child process: no cmocka there. */
#define must(x)                                                                                    \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s (death %llu, seed %llu)\n", __FILE__, __LINE__, \
				#x, (unsigned long long)w_death, (unsigned long long)w_seed);      \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#define WORLD_DOMAINS 6
#define WORLD_HELD 8192
#define ZERO_POOL_KBYTES 4096

struct held {
	pfn_t pfn;
	unsigned order;
	uint32_t domain; /* id */
	uint32_t owner, mapping, index;
	unsigned refs, maps; /* refs: entries and other holders; maps of them are entries */
	unsigned limbo;
	uint64_t pattern; /* of its contents; 0: zeroed, never written */
	bool sparse;      /* was a large block when it was claimed */
};

struct world {
	struct numa_topology topology;
	struct phys_config config;
	struct state *state;
	struct phys *phys;
	struct {
		uint32_t id;
		struct domain *d;
	} domain[WORLD_DOMAINS];
	struct held held[WORLD_HELD];
	unsigned nr_held;
	struct held *splitting; /* its frames are referred to one by one already */
	bool kzerod;
	struct prng prng;
	struct phys_recover_stats stats;
	unsigned nr_asked;
	struct { /* what the limbo callback gave, until recovery is done */
		pfn_t pfn;
		unsigned n;
	} given[WORLD_HELD];
	unsigned nr_given;
};

static uint64_t w_death, w_seed;
static jmp_buf w_grave;

/* In place of base/truth.c's, which kills. */
void truth_store_reached(void)
{
	truth_stop_after = 0;
	longjmp(w_grave, 1);
}

static inline void world_die_after(uint64_t n)
{
	w_death = n;
	truth_stores = 0;
	truth_stop_after = n;
}

static inline uint32_t world_rand(struct world *w, uint32_t n)
{
	return (uint32_t)prng_below(&w->prng, n);
}

/* ---- contents ------------------------------------------------------------------------- */

static inline uint64_t *word_of(uint64_t *block, pfn_t i, unsigned k)
{
	static const unsigned at[] = {0, 160, 511};

	return &block[i * 512u + at[k]];
}

static inline uint64_t *contents(struct world *w, const struct held *h)
{
	return domain_address(domain_by_id(w->phys, h->domain), h->pfn);
}

/* The next page at or after i that is written and looked at: of large blocks only some, told by their
 * number, so that a block freed as single frames is looked at again as a large one. */
static inline pfn_t next_page(const struct held *h, pfn_t i)
{
	while (h->sparse && (h->pfn + i) % 32 != 7 && i < 1u << h->order)
		i++;
	return i;
}

static inline void fill_held(struct world *w, struct held *h)
{
	uint64_t *block = contents(w, h);

	h->pattern = prng_next(&w->prng) | 1;
	for (pfn_t i = next_page(h, 0); i < 1u << h->order; i = next_page(h, i + 1))
		for (unsigned k = 0; k < 3; k++)
			*word_of(block, i, k) = h->pattern + i;
}

static inline void check_contents(struct world *w, const struct held *h)
{
	uint64_t *block = contents(w, h);

	for (pfn_t i = next_page(h, 0); i < 1u << h->order; i = next_page(h, i + 1))
		for (unsigned k = 0; k < 3; k++)
			must(*word_of(block, i, k) == (h->pattern ? h->pattern + i : 0));
}

/* ---- life ------------------------------------------------------------------------------ */

static inline void world_init(struct world *w, uint64_t size, unsigned nodes, uint64_t section,
			      uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	must(numa_topology_simulate(&w->topology, nodes, 4) == 0);
	w->config.arena_size = size;
	w->config.topology = &w->topology;
	w->config.section_size = section;
	w->config.hugepages = os_hugepages_available();
	w_seed = seed;
	w->prng.state = seed;
	control_thread_reset();
	store_fake();
}

static inline void world_boot(struct world *w)
{
	w->state = calloc(1, sizeof(*w->state));
	must(w->state && phys_create(&w->config, w->state, &w->phys) == 0);
	/* Zeroing is not what takes the time here; recovery keeps it. */
	w->state->tunables[TUNABLE_ZERO_POOL_KBYTES] = ZERO_POOL_KBYTES;
}

static inline struct held *held_at(struct world *w, pfn_t pfn)
{
	for (unsigned i = 0; i < w->nr_held; i++)
		if (w->held[i].pfn == pfn)
			return &w->held[i];
	return NULL;
}

static inline void held_drop(struct world *w, struct held *h)
{
	*h = w->held[--w->nr_held];
}

static inline struct held *world_alloc(struct world *w, unsigned dom, unsigned gfp, unsigned order,
				       unsigned cpu)
{
	static const uint32_t owners[] = {PG_ANON, PG_OBJECT, PG_KERNEL};
	struct alloc_request rq = {
		.domain = w->domain[dom].d,
		.gfp = gfp | ARENA_GFP_NOWARN,
		.order = order,
		.cpu = cpu,
		.hint = PFN_NONE,
		.owner = owners[world_rand(w, 3)],
		.mapping = 1 + world_rand(w, 1000),
		.index = world_rand(w, 100000),
	};
	struct alloc_result got;
	struct held *h;

	if (w->nr_held == WORLD_HELD || alloc_pages(w->phys, &rq, &got))
		return NULL;
	h = &w->held[w->nr_held++];
	*h = (struct held){.pfn = got.pfn,
			   .order = order,
			   .domain = w->domain[dom].id,
			   .owner = rq.owner,
			   .mapping = rq.mapping,
			   .index = rq.index,
			   .refs = 1,
			   .sparse = order > 3};
	if (!(gfp & GFP_NO_ZERO))
		check_contents(w, h);
	if (gfp & GFP_NO_ZERO || world_rand(w, 4))
		fill_held(w, h);
	return h;
}

static inline void world_get(struct world *w, struct held *h)
{
	get_page(w->phys, h->pfn);
	h->refs++;
}

/* An entry: counted by virt itself. */
static inline void world_map(struct world *w, struct held *h)
{
	if (h->maps == h->refs)
		return;
	w->phys->mem_map[h->pfn].mapcount++;
	h->maps++;
}

/* Forgotten first, and nothing of it is looked at afterwards. */
static inline void world_put(struct world *w, struct held *h)
{
	pfn_t pfn = h->pfn;

	if (h->maps == h->refs) {
		h->maps--;
		w->phys->mem_map[pfn].mapcount--;
	}
	if (!--h->refs && !h->limbo)
		held_drop(w, h);
	put_page(w->phys, pfn);
}

static inline void world_enter_limbo(struct world *w, struct held *h)
{
	page_enter_limbo(w->phys, h->pfn);
	if (h->maps == h->refs) {
		h->maps--;
		w->phys->mem_map[h->pfn].mapcount--;
	}
	h->refs--;
	h->limbo++;
}

static inline void world_leave_limbo(struct world *w, struct held *h)
{
	pfn_t pfn = h->pfn;

	if (!--h->limbo && !h->refs)
		held_drop(w, h);
	page_leave_limbo(w->phys, pfn);
}

static inline void world_make_singles(struct world *w, struct held *h)
{
	struct held whole = *h;

	held_drop(w, h);
	for (pfn_t i = 0; i < 1u << whole.order; i++) {
		struct held *one = &w->held[w->nr_held++];

		*one = whole;
		one->pfn += i;
		one->order = 0;
		one->index += i;
		one->pattern += whole.pattern ? i : 0;
	}
}

static inline void world_split(struct world *w, struct held *h)
{
	if (h->refs != 1 || h->limbo || w->nr_held + (1u << h->order) > WORLD_HELD)
		return;
	w->splitting = h;
	split_page(w->phys, h->pfn);
	w->splitting = NULL;
	world_make_singles(w, h);
}

static inline void world_domain(struct world *w, unsigned dom)
{
	struct domain *d;

	if (w->domain[dom].d)
		return;
	must(domain_create(w->phys, dom % 2 ? DOMAIN_UID : DOMAIN_SEGMENT, 1000 + dom, &d) == 0);
	w->domain[dom].d = d;
	w->domain[dom].id = domain_id(d);
}

/* The reference goes; frames in use keep it. */
static inline void world_domain_end(struct world *w, unsigned dom)
{
	struct domain *d = w->domain[dom].d;

	w->domain[dom].d = NULL;
	domain_put(d);
}

static inline void world_kzerod(struct world *w, bool on)
{
	if (on && !w->kzerod)
		must(kzerod_start(w->phys) == 0);
	else if (!on && w->kzerod)
		kzerod_stop(w->phys);
	w->kzerod = on;
}

/* ---- death and recovery ------------------------------------------------------------------ */

static inline unsigned world_limbo(void *ctx, pfn_t head, struct domain *d)
{
	struct world *w = ctx;
	const struct held *h = held_at(w, head);
	unsigned n = h && h->limbo ? 1 + world_rand(w, 2) : world_rand(w, 3);

	must(d && domain_id(d) && pfn_domain(w->phys, head) == d);
	w->nr_asked++;
	w->given[w->nr_given].pfn = head;
	w->given[w->nr_given++].n = n;
	return n;
}

static inline void count_refs(struct world *w)
{
	for (unsigned i = 0; i < w->nr_held; i++) {
		const struct held *h = &w->held[i];
		unsigned frames = h == w->splitting ? 1u << h->order : 1;

		for (pfn_t f = 0; f < frames; f++)
			for (unsigned k = 0; k < h->refs; k++)
				must(phys_recover_ref(w->phys, compound_head(w->phys, h->pfn + f),
						      k < h->maps));
	}
}

/* Every block that clients may have had mapped was asked about. */
static inline void take_limbo(struct world *w)
{
	uint32_t lost = 0;

	for (unsigned i = 0; i < w->nr_held; i++) {
		lost += w->held[i].limbo != 0;
		for (unsigned g = 0; g < w->nr_given; g++)
			if (w->held[i].limbo && w->given[g].pfn == w->held[i].pfn) {
				lost--;
				break;
			}
	}
	must(!lost);
	for (unsigned i = 0; i < w->nr_held; i++)
		w->held[i].limbo = 0;
	for (unsigned g = 0; g < w->nr_given; g++) {
		struct held *h = held_at(w, w->given[g].pfn);
		const struct page *page = &w->phys->mem_map[w->given[g].pfn];

		if (!w->given[g].n)
			continue;
		if (!h) {
			h = &w->held[w->nr_held++];
			*h = (struct held){
				.pfn = w->given[g].pfn,
				.order = page_order(page),
				.domain = domain_id(pfn_domain(w->phys, w->given[g].pfn)),
				.owner = page->flags & PG_OWNER,
				.mapping = page->mapping,
				.index = page->index,
			};
			h->sparse = true;
			if (next_page(h, 0) < 1u << h->order)
				h->pattern = *word_of(contents(w, h), next_page(h, 0), 0);
			h->pattern -= h->pattern ? next_page(h, 0) : 0;
		}
		h->limbo = w->given[g].n;
	}
}

static inline void check_held(struct world *w, const struct held *h)
{
	const struct page *page = pfn_to_page(w->phys, h->pfn);

	must(page && page->refcount == h->refs + h->limbo && page->mapcount == h->maps);
	must(page->private_ == h->limbo && !(page->flags & PG_LIMBO) == !h->limbo);
	must(page_order(page) == h->order && compound_head(w->phys, h->pfn) == h->pfn);
	must((page->flags & PG_OWNER) == h->owner && page->mapping == h->mapping &&
	     page->index == h->index);
	must(pfn_domain(w->phys, h->pfn) && domain_id(pfn_domain(w->phys, h->pfn)) == h->domain);
	check_contents(w, h);
}

/* The whole picture: what the model says is in use is, and all else is free. */
static inline void world_check(struct world *w)
{
	uint64_t used = 0;

	must(phys_is_valid(w->phys));
	for (unsigned i = 0; i < w->nr_held; i++) {
		check_held(w, &w->held[i]);
		used += UINT64_C(1) << w->held[i].order;
	}
	must(phys_total_pages(w->phys) - phys_free_pages(w->phys) == used);
}

/* What the store keeps is the state and a file for each domain. */
static inline void check_store(struct world *w)
{
	const struct domain *d;
	unsigned n = 1;

	TAILQ_FOREACH(d, &w->phys->live, link)
		n++;
	must(store_fake_count() == n);
}

/* False: the worker had died before there was anything to take over. May itself die. */
static inline bool world_recover(struct world *w)
{
	static const struct phys_recover_ops ops = {.limbo = world_limbo};
	char err[200] = "";
	int fd;

	/* A thread of ours dies with the process; what it had in hand it may have finished. */
	if (w->phys && w->phys->kz.queue)
		workqueue_flush(w->phys->kz.queue);
	w->kzerod = false;
	w->nr_given = 0;
	w->phys = NULL;
	store_fake_restart();
	fd = store_take("state");
	if (fd < 0)
		return false;
	w->state = calloc(1, sizeof(*w->state));
	must(w->state);
	if (state_adopt(fd, w->state, err, sizeof(err))) {
		fprintf(stderr, "%s\n", err);
		must(!"adopted");
	}
	phys_recover_topology(w->state, &w->topology);
	must(phys_recover(&w->config, w->state, &w->phys) == 0);
	for (unsigned i = 0; i < WORLD_DOMAINS; i++) {
		if (!w->domain[i].d)
			continue;
		w->domain[i].d = domain_by_id(w->phys, w->domain[i].id);
		must(w->domain[i].d);
		domain_get(w->domain[i].d);
	}
	count_refs(w);
	must(phys_recover_finish(w->phys, &ops, w, &w->stats) == 0);
	/* Another death in here recovers from the same model. */
	domain_end_unused(w->phys);
	store_drop_rest();
	return true;
}

/* After the last death of a row. */
static inline void world_settle(struct world *w)
{
	if (w->splitting && page_order(&w->phys->mem_map[w->splitting->pfn])) {
		w->splitting->maps <<= w->splitting->order;
		w->splitting->refs <<= w->splitting->order;
	} else if (w->splitting) {
		world_make_singles(w, w->splitting);
	}
	w->splitting = NULL;
	take_limbo(w);
	must(!w->stats.damaged && !w->stats.lost_domains);
	must(state_tunable(w->state, TUNABLE_ZERO_POOL_KBYTES) == ZERO_POOL_KBYTES);
	world_check(w);
	check_store(w);
}

/* Everything back: the picture is that of boot. */
static inline void world_end(struct world *w)
{
	world_kzerod(w, false);
	while (w->nr_held) {
		struct held *h = &w->held[w->nr_held - 1];

		if (h->limbo)
			world_leave_limbo(w, h);
		else
			world_put(w, h);
	}
	for (unsigned i = 0; i < WORLD_DOMAINS; i++)
		if (w->domain[i].d)
			world_domain_end(w, i);
	for (unsigned s = 0; s < phys_nr_sections(w->phys); s++)
		if (section_state(w->phys, s) == SECTION_OFFLINE)
			must(section_online(w->phys, s) == 0);
	must(phys_is_valid(w->phys));
	must(phys_free_pages(w->phys) == phys_total_pages(w->phys));
	must(w->phys->nr_unowned == w->phys->managed && TAILQ_EMPTY(&w->phys->live));
	must(store_fake_count() == 1);
	phys_retire(w->phys);
	w->phys = phys_destroy(w->phys);
	must(store_fake_count() == 0);
	store_fake_end();
}

/* Run in a child, which may leak what the dead leave. 0, or how it ended. */
static inline int in_child(void (*fn)(void *), void *arg)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		fn(arg);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

#endif
