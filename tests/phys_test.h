/* SPDX-License-Identifier: MIT */
/* phys_test.h - a small arena for the unit tests of daemon/phys. */
#ifndef PHYS_TEST_H
#define PHYS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "arena/arena.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/os.h"
#include "base/prng.h"
#include "base/util.h"
#include "daemon/phys/phys.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

struct arena_fixture {
	struct numa_topology topology;
	struct phys_config config;
	struct state state;
	struct phys *phys;
};

static inline void fixture_init(struct arena_fixture *f, uint64_t size, unsigned nodes,
				unsigned cpus)
{
	memset(f, 0, sizeof(*f));
	assert_int_equal(numa_topology_simulate(&f->topology, nodes, cpus), 0);
	f->config.arena_size = size;
	f->config.topology = &f->topology;
	f->config.hugepages = os_hugepages_available(); /* only faster */
}

static inline void fixture_boot(struct arena_fixture *f)
{
	assert_int_equal(phys_create(&f->config, &f->state, &f->phys), 0);
	assert_true(phys_is_valid(f->phys));
}

static inline void fixture_start(struct arena_fixture *f, uint64_t size, unsigned nodes,
				 unsigned cpus)
{
	fixture_init(f, size, nodes, cpus);
	fixture_boot(f);
}

static inline void fixture_end(struct arena_fixture *f)
{
	assert_true(phys_is_valid(f->phys));
	f->phys = phys_destroy(f->phys);
}

static inline struct domain *new_domain(struct arena_fixture *f, uint32_t uid)
{
	struct domain *d = NULL;

	assert_int_equal(domain_create(f->phys, DOMAIN_UID, uid, &d), 0);
	return d;
}

static inline struct zone *zone_at(struct arena_fixture *f, unsigned node, enum zone_type type)
{
	return &phys_node(f->phys, node)->zone[type];
}

static inline int try_alloc(struct arena_fixture *f, struct domain *d, unsigned gfp, unsigned order,
			    unsigned cpu, struct alloc_result *out)
{
	struct alloc_request rq = {
		.domain = d,
		.gfp = gfp,
		.order = order,
		.cpu = cpu,
		.hint = PFN_NONE,
		.owner = PG_ANON,
		.mapping = 1,
	};

	return alloc_pages(f->phys, &rq, out);
}

static inline pfn_t must_alloc(struct arena_fixture *f, struct domain *d, unsigned gfp,
			       unsigned order)
{
	struct alloc_result out;

	assert_int_equal(try_alloc(f, d, gfp, order, 0, &out), 0);
	return out.pfn;
}

static inline uint64_t event(const struct arena_fixture *f, enum event_item item)
{
	return f->state.counters[item];
}

/* Frames that a test holds. */
struct hoard {
	pfn_t *pfn;
	size_t nr, cap;
};

static inline void hoard_add(struct hoard *h, pfn_t pfn)
{
	if (h->nr == h->cap) {
		h->cap = h->cap ? 2 * h->cap : 256;
		h->pfn = realloc(h->pfn, h->cap * sizeof(*h->pfn));
		assert_non_null(h->pfn);
	}
	h->pfn[h->nr++] = pfn;
}

static inline size_t hoard_all(struct arena_fixture *f, struct hoard *h, struct domain *d,
			       unsigned gfp, unsigned order)
{
	struct alloc_result out;
	size_t before = h->nr;

	while (try_alloc(f, d, gfp | ARENA_GFP_NOWARN, order, 0, &out) == 0)
		hoard_add(h, out.pfn);
	return h->nr - before;
}

static inline void hoard_free(struct arena_fixture *f, struct hoard *h)
{
	while (h->nr)
		put_page(f->phys, h->pfn[--h->nr]);
	free(h->pfn);
	*h = (struct hoard){0};
}

static inline uint64_t test_seed(void)
{
	const char *text = getenv("ARENA_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : clock_now();

	printf("seed: ARENA_TEST_SEED=%llu\n", (unsigned long long)seed);
	fflush(stdout);
	return seed;
}

#endif
