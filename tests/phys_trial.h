/* SPDX-License-Identifier: MIT */
/*
 * phys_trial.h - lives of an arena, and trials in which it dies: a scenario with every operation of
 * daemon/phys, one with deferred sections, random ones. A trial is a child process in which the
 * worker dies at a given store to the truth; recovery follows, a comparison with the model, more
 * life, and at last the boot picture.
 */
#ifndef PHYS_TRIAL_H
#define PHYS_TRIAL_H

#include "phys_world.h"
#include "tests/sanitized.h"

#define FINISHED 3 /* exit status: the scenario ended before the store that was to be the last */

struct trial {
	void (*boot)(struct world *w);
	void (*scenario)(struct world *w);
	uint64_t die_at, die_in_recovery; /* 0: not there */
	uint64_t seed;
	bool from_boot; /* count the stores of boot too */
};

static struct world world;

/* ---- operations --------------------------------------------------------------------------- */

static inline struct held *any_held(struct world *w)
{
	return w->nr_held ? &w->held[world_rand(w, w->nr_held)] : NULL;
}

static inline unsigned any_gfp(struct world *w)
{
	static const unsigned gfp[] = {
		GFP_USER_MOVABLE,
		GFP_USER_MOVABLE | GFP_HOLE_OK,
		GFP_USER_MOVABLE | GFP_READY_ONLY | GFP_HOLE_OK,
		GFP_USER_MOVABLE | GFP_READY_ONLY,
		0,
		ARENA_GFP_DMA | ARENA_GFP_RECLAIMABLE,
		ARENA_GFP_ATOMIC,
		GFP_NO_ZERO,
		GFP_USER_MOVABLE | GFP_NO_ZERO | GFP_HOLE_OK,
	};

	return gfp[world_rand(w, ARRAY_SIZE(gfp))];
}

static inline void step_alloc(struct world *w)
{
	static const uint8_t orders[] = {0, 0, 0, 0, 0, 1, 2, 3, 5, 8, 9, 9, 10};
	unsigned dom = world_rand(w, WORLD_DOMAINS);

	world_domain(w, dom);
	world_alloc(w, dom, any_gfp(w), orders[world_rand(w, ARRAY_SIZE(orders))],
		    world_rand(w, 4));
}

static inline void step_held(struct world *w, unsigned what)
{
	struct held *h = any_held(w);

	if (!h)
		return;
	if (what < 2 && h->refs)
		world_get(w, h);
	else if (what < 5)
		world_map(w, h);
	else if (what < 8 && h->refs)
		world_enter_limbo(w, h);
	else if (what < 12 && h->limbo)
		world_leave_limbo(w, h);
	else if (what < 14 && h->order <= 4)
		world_split(w, h);
	else if (what == 14 && !world_rand(w, 4))
		world_split(w, h);
	else if (h->refs)
		world_put(w, h);
}

static inline void step_rare(struct world *w)
{
	unsigned dom = world_rand(w, WORLD_DOMAINS);
	unsigned section = world_rand(w, phys_nr_sections(w->phys));

	switch (world_rand(w, 7)) {
	case 0:
		drain_pages(w->phys, NULL);
		break;
	case 1:
		phys_reclaim_blocks(w->phys, NULL, world_rand(w, 3));
		break;
	case 2:
		if (w->domain[dom].d)
			world_domain_end(w, dom);
		break;
	case 3:
		section_offline(w->phys, section);
		break;
	case 4:
		section_online(w->phys, section);
		break;
	case 5:
		world_kzerod(w, !w->kzerod);
		break;
	default:
		if (w->kzerod)
			kzerod_collect(w->phys);
	}
}

static inline void step(struct world *w)
{
	unsigned what = world_rand(w, 40);

	if (what < 16)
		step_alloc(w);
	else if (what < 36)
		step_held(w, what - 16);
	else
		step_rare(w);
}

static inline void steps(struct world *w, unsigned n)
{
	while (n--)
		step(w);
}

/* ---- scenarios ------------------------------------------------------------------------------ */

/* 24 MiB, two nodes, one pageblock a section: small enough to run out of. */
static inline void boot_small(struct world *w)
{
	world_init(w, 24 * MIB, 2, 2 * MIB, w_seed);
	w->config.reserved[0] = (struct phys_range){5 * MIB, 4096};
	w->config.nr_reserved = 1;
}

/* As small as an arena with deferred sections can be. */
static inline void boot_deferred(struct world *w)
{
	world_init(w, GIB + 32 * MIB, 1, 16 * MIB, w_seed);
}

static inline void use_all_orders(struct world *w)
{
	for (unsigned order = 0; order <= MAX_ORDER; order++)
		world_alloc(w, 0, GFP_USER_MOVABLE, order, order % 4);
	world_alloc(w, 0, GFP_USER_MOVABLE | GFP_HOLE_OK, 9, 0);
	world_alloc(w, 1, 0, 0, 2);
	world_alloc(w, 1, ARENA_GFP_DMA | ARENA_GFP_RECLAIMABLE, 1, 3);
}

static inline void references(struct world *w)
{
	struct held *h = world_alloc(w, 0, GFP_USER_MOVABLE, 0, 0), *split;

	must(h);
	world_get(w, h);
	world_get(w, h);
	world_map(w, h);
	world_map(w, h);
	world_enter_limbo(w, h);
	world_put(w, h);
	world_leave_limbo(w, h);
	world_enter_limbo(w, h);
	split = world_alloc(w, 0, 0, 3, 0);
	must(split);
	world_map(w, split);
	world_split(w, split);
}

static inline void free_some(struct world *w, unsigned order_from, unsigned order_to)
{
	for (unsigned i = w->nr_held; i-- > 0;)
		if (i < w->nr_held && w->held[i].order >= order_from &&
		    w->held[i].order <= order_to && w->held[i].refs && !w->held[i].limbo)
			world_put(w, &w->held[i]);
}

/* Until nothing is left: blocks of other types are stolen, caches emptied, blocks taken back. */
static inline void exhaust(struct world *w, unsigned dom)
{
	while (world_alloc(w, dom, GFP_USER_MOVABLE, 8, 0))
		;
	while (world_alloc(w, dom, 0, 6, 2))
		;
	while (world_alloc(w, dom, GFP_USER_MOVABLE, 5, 0))
		;
}

static inline void atomic_reserve(struct world *w)
{
	w->state->tunables[TUNABLE_MIN_FREE_KBYTES] = 2048;
	phys_setup_watermarks(w->phys);
	while (world_alloc(w, 0, ARENA_GFP_ATOMIC | GFP_USER_MOVABLE, 7, 0))
		;
	must(zone_pageblocks(&phys_node(w->phys, 0)->zone[ZONE_HIGHMEM], MIGRATE_HIGHATOMIC));
	w->state->tunables[TUNABLE_MIN_FREE_KBYTES] = 64;
	phys_setup_watermarks(w->phys);
}

static inline void every_operation(struct world *w)
{
	world_domain(w, 0);
	world_domain(w, 1);
	use_all_orders(w);
	references(w);
	free_some(w, 3, 8);
	drain_pages(w->phys, NULL);
	/* Dirty leaves, given as punched holes and given back. */
	free_some(w, 9, 10);
	world_alloc(w, 0, GFP_USER_MOVABLE | GFP_HOLE_OK, 9, 0);
	phys_reclaim_blocks(w->phys, NULL, 0);
	world_kzerod(w, true);
	world_alloc(w, 0, GFP_USER_MOVABLE, 9, 0);
	free_some(w, 9, 9);
	kzerod_collect(w->phys);
	world_kzerod(w, false);
	for (unsigned s = 0; s < phys_nr_sections(w->phys); s += 2)
		section_offline(w->phys, s);
	free_some(w, 0, 0);
	world_domain_end(w, 1);
	world_domain(w, 2);
	exhaust(w, 2);
	free_some(w, 5, 8);
	/* An atomic request that meets pressure sets a pageblock aside, another domain's need ends it. */
	for (unsigned s = 0; s < phys_nr_sections(w->phys); s++)
		section_online(w->phys, s);
	atomic_reserve(w);
	free_some(w, 7, 7);
	exhaust(w, 2);
	must(!zone_pageblocks(&phys_node(w->phys, 0)->zone[ZONE_HIGHMEM], MIGRATE_HIGHATOMIC));
	free_some(w, 0, 4);
	world_domain_end(w, 0);
	free_some(w, 0, 10);
	world_domain_end(w, 2);
}

static inline pfn_t zone_deferred(struct world *w)
{
	return phys_node(w->phys, 0)->zone[ZONE_HIGHMEM].deferred;
}

static inline void grow_deferred(struct world *w)
{
	unsigned deferred = pfn_section(w->phys, zone_deferred(w)) + 1;
	struct held *h;

	world_domain(w, 0);
	/* Past one section, so that more are initialised; one of those to come is offline. */
	section_offline(w->phys, deferred);
	for (unsigned i = 0; i < 20; i++) {
		h = world_alloc(w, 0, GFP_USER_MOVABLE | GFP_HOLE_OK, 10, 0);
		must(h);
		if (i % 2)
			world_put(w, h);
	}
	must(zone_deferred(w) > (deferred + 1) * phys_section_pages(w->phys));
	section_online(w->phys, deferred);
	free_some(w, 0, 10);
	world_domain_end(w, 0);
}

static inline void random_life(struct world *w)
{
	steps(w, 400);
}

/* ---- trials ---------------------------------------------------------------------------------- */

/* True: it lived through. */
static inline bool live(struct world *w, const struct trial *t)
{
	if (setjmp(w_grave))
		return false;
	if (t->from_boot)
		world_die_after(t->die_at);
	world_boot(w);
	if (!t->from_boot)
		world_die_after(t->die_at);
	t->scenario(w);
	truth_stop_after = 0;
	return true;
}

static inline bool take_over(struct world *w, uint64_t die_at, bool *found)
{
	if (setjmp(w_grave))
		return false;
	truth_stop_after = 0;
	if (die_at)
		world_die_after(die_at);
	*found = world_recover(w);
	truth_stop_after = 0;
	return true;
}

static inline void run_trial(void *arg)
{
	const struct trial *t = arg;
	struct world *w = &world;
	bool found = false;

	w_seed = t->seed;
	t->boot(w);
	if (live(w, t)) {
		world_check(w);
		world_end(w);
		_exit(FINISHED);
	}
	if (t->die_in_recovery && take_over(w, t->die_in_recovery, &found) && found) {
		world_settle(w);
		_exit(FINISHED);
	}
	if (!take_over(w, 0, &found))
		abort();
	if (!found) {
		must(t->from_boot);
		must(!store_fake_count());
		return;
	}
	world_settle(w);
	steps(w, 40);
	world_check(w);
	world_end(w);
}

static inline int run(const struct trial *t)
{
	int status;

	status = in_child(run_trial, (void *)t);
	if (status && status != FINISHED << 8)
		fail_msg("died at store %llu (recovery %llu), seed %llu: status %#x",
			 (unsigned long long)t->die_at, (unsigned long long)t->die_in_recovery,
			 (unsigned long long)t->seed, status);
	return status;
}

/* Every store; under a sanitizer every `sparse`th, from a place that differs each time. */
static inline void sweep(const struct trial *base, unsigned sparse)
{
	unsigned every = TEST_SANITIZED ? sparse : 1;
	uint64_t n = 1 + clock_now() % every, deaths = 0;
	struct trial t = *base;

	for (;; n += every, deaths++) {
		t.die_at = n;
		if (run(&t))
			break;
	}
	printf("%llu deaths, the last at store %llu\n", (unsigned long long)deaths,
	       (unsigned long long)n - every);
	assert_true(deaths > 0);
}

#endif
