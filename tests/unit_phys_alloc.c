/* SPDX-License-Identifier: MIT */
/*
 * alloc_pages: contents and events, hints, zone and node choice, watermarks, the atomic reserve,
 * fallback between migratetypes, what pressure does, and what a block's life looks like in mem_map.
 */
#include <unistd.h>

#include "tests/phys_test.h"

static struct arena_fixture f;
static struct domain *d;

static void start(uint64_t size, unsigned nodes)
{
	fixture_start(&f, size, nodes, 2 * nodes);
	d = new_domain(&f, 1);
}

static void end(void)
{
	d = domain_put(d);
	assert_int_equal(phys_free_pages(f.phys), phys_total_pages(f.phys));
	fixture_end(&f);
}

static struct alloc_request request(unsigned gfp, unsigned order, pfn_t hint)
{
	return (struct alloc_request){.domain = d,
				      .gfp = gfp,
				      .order = order,
				      .hint = hint,
				      .owner = PG_OBJECT,
				      .mapping = 42,
				      .index = 100};
}

static void test_life_of_a_block(void **state)
{
	struct alloc_request rq;
	struct alloc_result out;
	struct page *page;

	(void)state;
	start(64 * MIB, 1);
	rq = request(GFP_USER_MOVABLE, 2, PFN_NONE);
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	page = pfn_to_page(f.phys, out.pfn);
	assert_int_equal(page->refcount, 1);
	assert_int_equal(page->mapcount, 0);
	assert_int_equal(page->mapping, 42);
	assert_int_equal(page->index, 100);
	assert_int_equal(page->flags & PG_OWNER, PG_OBJECT);
	assert_int_equal(page_order(page), 2);
	assert_int_equal(page[1].refcount, 0);
	assert_int_equal(compound_head(f.phys, out.pfn + 3), out.pfn);
	page->mapcount = 3;
	get_page(f.phys, out.pfn);
	split_page(f.phys, out.pfn);
	for (pfn_t i = 0; i < 4; i++) {
		assert_int_equal(compound_head(f.phys, out.pfn + i), out.pfn + i);
		assert_int_equal(page[i].refcount, 2);
		assert_int_equal(page[i].mapcount, 3);
		assert_int_equal(page[i].index, 100 + i);
		assert_int_equal(page[i].mapping, 42);
		assert_int_equal(page[i].flags & PG_OWNER, PG_OBJECT);
		assert_int_equal(page_order(&page[i]), 0);
	}
	page[2].flags |= PG_LIMBO;
	for (pfn_t i = 0; i < 4; i++) {
		put_page(f.phys, out.pfn + i);
		assert_int_equal(page[i].refcount, 1);
		put_page(f.phys, out.pfn + i);
		assert_int_equal(page[i].refcount, 0);
		assert_false(page[i].flags & (PG_LIMBO | PG_OWNER));
		assert_int_equal(compound_head(f.phys, out.pfn + i), PFN_NONE);
	}
	rq.order = MAX_ORDER + 1;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), ARENA_E_INVALID);
	rq.order = 0;
	rq.domain = domain_by_id(f.phys, 0);
	assert_int_equal(alloc_pages(f.phys, &rq, &out), ARENA_E_INVALID);
	end();
}

static void test_domains(void **state)
{
	struct domain *e;
	uint32_t id;
	pfn_t pfn;

	(void)state;
	start(64 * MIB, 1);
	e = new_domain(&f, 2);
	id = domain_id(e);
	assert_int_not_equal(id, domain_id(d));
	assert_ptr_equal(domain_find(f.phys, DOMAIN_UID, 2), e);
	assert_null(domain_find(f.phys, DOMAIN_SEGMENT, 2));
	assert_ptr_equal(domain_by_id(f.phys, id), e);
	domain_put(e);
	pfn = must_alloc(&f, e, GFP_USER_MOVABLE, 3);
	assert_ptr_equal(pfn_domain(f.phys, pfn + 7), e);
	assert_int_equal(domain_used_pages(e), 8);
	assert_int_equal(domain_owned_blocks(e), 1);
	/* the last reference goes, the frames stay until they are freed */
	domain_put(e);
	assert_null(domain_find(f.phys, DOMAIN_UID, 2));
	assert_ptr_equal(domain_by_id(f.phys, id), e);
	put_page(f.phys, pfn);
	assert_null(domain_by_id(f.phys, id));
	assert_null(pfn_domain(f.phys, pfn));
	assert_int_equal(f.state.domains[id].kind, DOMAIN_FREE);
	e = new_domain(&f, 2);
	assert_int_equal(domain_id(e), id + 1);
	domain_put(e);
	assert_int_equal(domain_create(f.phys, DOMAIN_FREE, 0, &e), ARENA_E_INVALID);
	end();
}

/* What a leaf is made of: a hole, ready zeros, or memory zeroed now. */
static void test_contents_and_events(void **state)
{
	struct alloc_request rq;
	struct alloc_result a, b;

	(void)state;
	start(64 * MIB, 1);
	rq = request(GFP_USER_MOVABLE | GFP_HOLE_OK, 9, PFN_NONE);
	rq.gfp |= GFP_READY_ONLY;
	assert_int_equal(alloc_pages(f.phys, &rq, &a), 0);
	assert_true(a.hole);
	assert_true(pfn_to_page(f.phys, a.pfn)->flags & PG_HOLE);
	assert_int_equal(phys_backed_bytes(f.phys), 0);
	assert_int_equal(event(&f, EV_ARENA_HOLE_LEAF), 1);
	memset(domain_address(d, a.pfn), 1, 4096);
	put_page(f.phys, a.pfn);
	/* dirty now; with HOLE_OK an unowned block costs less than cleaning it */
	assert_int_equal(alloc_pages(f.phys, &rq, &b), 0);
	assert_true(b.hole && b.pfn != a.pfn);
	put_page(f.phys, b.pfn);
	/* without, it is zeroed here and now */
	rq.gfp = GFP_USER_MOVABLE;
	assert_int_equal(alloc_pages(f.phys, &rq, &b), 0);
	assert_false(b.hole);
	assert_int_equal(event(&f, EV_ARENA_ZEROED_INLINE), 512);
	put_page(f.phys, b.pfn);
	/* READY_ONLY for a small page: nothing zeroed is there */
	rq.gfp = GFP_USER_MOVABLE | GFP_READY_ONLY;
	rq.order = 0;
	assert_int_equal(alloc_pages(f.phys, &rq, &b), ARENA_E_NO_MEMORY);
	/* a hole broken into pieces is backed as a whole, and its pieces are ready */
	phys_reclaim_blocks(f.phys, d, 0);
	rq.gfp = GFP_USER_MOVABLE;
	assert_int_equal(alloc_pages(f.phys, &rq, &a), 0);
	assert_true(phys_backed_bytes(f.phys) >= 2 * MIB);
	assert_int_equal(phys_zeroed_pages(f.phys, d), 511);
	assert_int_equal(event(&f, EV_ARENA_ZEROED_READY), 1);
	rq.gfp |= GFP_READY_ONLY;
	assert_int_equal(alloc_pages(f.phys, &rq, &b), 0);
	assert_int_equal(b.pfn, a.pfn + 1);
	put_page(f.phys, a.pfn);
	put_page(f.phys, b.pfn);
	assert_int_equal(phys_zeroed_pages(f.phys, NULL), 510);
	end();
}

static void test_hints(void **state)
{
	struct alloc_request rq;
	struct zone *high, *normal;
	struct alloc_result out;
	struct domain *e;
	pfn_t want;

	(void)state;
	start(128 * MIB, 2);
	rq = request(GFP_USER_MOVABLE | GFP_HOLE_OK, 9, 0);
	high = zone_at(&f, 0, ZONE_HIGHMEM);
	normal = zone_at(&f, 0, ZONE_NORMAL);
	want = ALIGN_UP(high->start, 1024) + 2048 + 512; /* second half of a free block */
	rq.hint = want;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_equal(out.pfn, want);
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_not_equal(out.pfn, want);
	put_page(f.phys, out.pfn);
	put_page(f.phys, want);
	rq.hint = want - 512; /* nobody's, beside one of the domain */
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_equal(out.pfn, want - 512);
	put_page(f.phys, out.pfn);
	/* single pages, in the buddy and on a CPU's list */
	rq.order = 0;
	rq.hint = want + 77;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_equal(out.pfn, want + 77);
	put_page(f.phys, want + 77);
	assert_true(pfn_to_page(f.phys, want + 77)->flags & PG_PCP);
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_equal(out.pfn, want + 77);
	assert_true(phys_is_valid(f.phys));
	/* not this zone, this node, this domain */
	rq.gfp = ARENA_GFP_KERNEL;
	rq.hint = want + 78;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_ptr_equal(pfn_zone(f.phys, out.pfn), normal);
	put_page(f.phys, out.pfn);
	rq.gfp = GFP_USER_MOVABLE;
	rq.hint = zone_at(&f, 1, ZONE_HIGHMEM)->start;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_equal(pfn_zone(f.phys, out.pfn)->node, 0);
	put_page(f.phys, out.pfn);
	e = new_domain(&f, 2);
	rq.domain = e;
	rq.hint = want + 79;
	assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
	assert_int_not_equal(out.pfn, want + 79);
	assert_ptr_equal(pfn_domain(f.phys, out.pfn), e);
	put_page(f.phys, out.pfn);
	domain_put(e);
	put_page(f.phys, want + 77);
	end();
}

/* Zones from the one asked for down, near nodes before far ones, and what is counted. */
static void test_zonelist(void **state)
{
	static const char matrix[] = "10 40 20; 40 10 30; 20 30 10";
	static const uint8_t by_distance[] = {0, 2, 1};
	struct hoard h = {0};
	unsigned rank = 0, last = 0;

	(void)state;
	fixture_init(&f, 96 * MIB, 3, 3);
	assert_int_equal(numa_parse_distances(&f.topology, matrix), 0);
	fixture_boot(&f);
	d = new_domain(&f, 1);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 3);
	for (size_t i = 0; i < h.nr; i++) {
		const struct zone *z = pfn_zone(f.phys, h.pfn[i]);
		unsigned at;

		for (rank = 0; by_distance[rank] != z->node; rank++)
			;
		at = rank * NR_ZONE_TYPES + (ZONE_HIGHMEM - z->type);
		/* on the second way through the list, down to min, it starts again */
		assert_true(at >= last || h.nr - i < h.nr / 8);
		last = MAX(last, at);
	}
	assert_int_equal(last, 8);
	assert_true(phys_node(f.phys, 0)->numa_stat[NUMA_HIT] > 0);
	assert_int_equal(phys_node(f.phys, 0)->numa_stat[NUMA_HIT],
			 phys_node(f.phys, 0)->numa_stat[NUMA_LOCAL]);
	assert_int_equal(phys_node(f.phys, 0)->numa_stat[NUMA_FOREIGN],
			 phys_node(f.phys, 1)->numa_stat[NUMA_MISS] +
				 phys_node(f.phys, 2)->numa_stat[NUMA_MISS]);
	assert_int_equal(phys_node(f.phys, 2)->numa_stat[NUMA_OTHER],
			 phys_node(f.phys, 2)->numa_stat[NUMA_MISS]);
	hoard_free(&f, &h);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE | ARENA_GFP_THISNODE, 0);
	for (size_t i = 0; i < h.nr; i++)
		assert_int_equal(pfn_zone(f.phys, h.pfn[i])->node, 0);
	hoard_free(&f, &h);
	/* A policy: nodes 1 and 2 alone, of which 2 is nearer to the CPU's; and one that begins at 1. */
	{
		struct alloc_request rq = {
			.domain = d,
			.gfp = GFP_USER_MOVABLE | ARENA_GFP_NOWARN,
			.nodes = 6,
			.hint = PFN_NONE,
			.owner = PG_ANON,
		};
		struct alloc_result out;
		uint64_t other = phys_node(f.phys, 2)->numa_stat[NUMA_OTHER];

		while (alloc_pages(f.phys, &rq, &out) == 0) {
			hoard_add(&h, out.pfn);
			assert_int_not_equal(pfn_zone(f.phys, out.pfn)->node, 0);
		}
		assert_int_equal(pfn_zone(f.phys, h.pfn[0])->node, 2);
		assert_true(phys_node(f.phys, 2)->numa_stat[NUMA_OTHER] > other);
		hoard_free(&f, &h);
		rq.nodes = 0;
		rq.prefer = 1 + 1;
		assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
		assert_int_equal(pfn_zone(f.phys, out.pfn)->node, 1);
		put_page(f.phys, out.pfn);
		rq.gfp |= ARENA_GFP_THISNODE;
		assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
		assert_int_equal(pfn_zone(f.phys, out.pfn)->node, 0);
		put_page(f.phys, out.pfn);
	}
	hoard_all(&f, &h, d, ARENA_GFP_DMA, 0);
	assert_true(h.nr > 0);
	for (size_t i = 0; i < h.nr; i++)
		assert_int_equal(pfn_zone(f.phys, h.pfn[i])->type, ZONE_DMA);
	hoard_free(&f, &h);
	end();
}

static void test_watermarks(void **state)
{
	struct zone *dma, *normal, *high;
	struct zone fake;

	(void)state;
	start(256 * MIB, 1);
	/* 4 * sqrt(262144 kB) = 2048 kB, below 1/64 of memory */
	assert_int_equal(state_tunable(&f.state, TUNABLE_MIN_FREE_KBYTES), 2048);
	dma = zone_at(&f, 0, ZONE_DMA);
	normal = zone_at(&f, 0, ZONE_NORMAL);
	high = zone_at(&f, 0, ZONE_HIGHMEM);
	assert_int_equal(dma->managed, 1024);
	assert_int_equal(normal->managed, 16384);
	assert_int_equal(high->managed, 48128);
	assert_int_equal(normal->watermark[WMARK_MIN], 128);
	assert_int_equal(normal->watermark[WMARK_LOW], 128 + 32);
	assert_int_equal(normal->watermark[WMARK_HIGH], 128 + 64);
	/* (managed pages above, up to the zone asked for) / ratio */
	assert_int_equal(dma->lowmem_reserve[ZONE_DMA], 0);
	assert_int_equal(dma->lowmem_reserve[ZONE_NORMAL], 16384 / 256);
	assert_int_equal(dma->lowmem_reserve[ZONE_HIGHMEM], (16384 + 48128) / 256);
	assert_int_equal(normal->lowmem_reserve[ZONE_DMA], 0);
	assert_int_equal(normal->lowmem_reserve[ZONE_NORMAL], 0);
	assert_int_equal(normal->lowmem_reserve[ZONE_HIGHMEM], 48128 / 32);
	assert_int_equal(high->lowmem_reserve[ZONE_HIGHMEM], 0);
	f.state.tunables[TUNABLE_MIN_FREE_KBYTES] = 8192;
	f.state.tunables[TUNABLE_WATERMARK_SCALE_FACTOR] = 1000;
	phys_setup_watermarks(f.phys);
	assert_int_equal(normal->watermark[WMARK_MIN], 512);
	assert_int_equal(normal->watermark[WMARK_LOW], 512 + 1638);

	fake = *normal;
	fake.nr_highatomic = 0;
	fake.nr_free = 101;
	memset(fake.lowmem_reserve, 0, sizeof(fake.lowmem_reserve));
	fake.lowmem_reserve[ZONE_HIGHMEM] = 10;
	static const struct {
		unsigned order;
		uint64_t mark;
		enum zone_type highest;
		unsigned flags, highatomic;
		bool ok;
	} table[] = {
		{0, 100, ZONE_NORMAL, 0, 0, true},
		{0, 101, ZONE_NORMAL, 0, 0, false},
		{0, 91, ZONE_HIGHMEM, 0, 0, false},
		{0, 90, ZONE_HIGHMEM, 0, 0, true},
		{3, 93, ZONE_NORMAL, 0, 0, true}, /* 2^3 - 1 cannot be counted on */
		{3, 94, ZONE_NORMAL, 0, 0, false},
		{0, 200, ZONE_NORMAL, ALLOC_HIGH, 0, true}, /* to a half */
		{0, 202, ZONE_NORMAL, ALLOC_HIGH, 0, false},
		{0, 132, ZONE_NORMAL, ALLOC_HARDER, 0, true}, /* to three quarters */
		{0, 136, ZONE_NORMAL, ALLOC_HARDER, 0, false},
		{0, 264, ZONE_NORMAL, ALLOC_HARDER | ALLOC_HIGH, 0, true},
		{0, 400, ZONE_NORMAL, ALLOC_OOM | ALLOC_HIGH, 0, true}, /* to a quarter */
		{0, 404, ZONE_NORMAL, ALLOC_OOM | ALLOC_HIGH, 0, false},
		{0, 9999, ZONE_NORMAL, ALLOC_NO_WATERMARKS, 0, true},
		{0, 50, ZONE_NORMAL, 0, 60, false}, /* the reserve is not for everybody */
		{0, 40, ZONE_NORMAL, 0, 60, true},
		{0, 50, ZONE_NORMAL, ALLOC_HARDER, 60, true},
	};
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		fake.nr_highatomic = table[i].highatomic;
		if (zone_watermark_ok(&fake, table[i].order, table[i].mark, table[i].highest,
				      table[i].flags) != table[i].ok)
			fail_msg("row %zu", i);
	}
	end();
}

/* What stops whom: low zones keep a reserve from requests that could have gone higher. */
static void test_lowmem_reserve(void **state)
{
	struct hoard h = {0};
	struct zone *dma, *normal;
	struct alloc_result out;
	uint64_t left;

	(void)state;
	start(256 * MIB, 1);
	dma = zone_at(&f, 0, ZONE_DMA);
	normal = zone_at(&f, 0, ZONE_NORMAL);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	left = normal->watermark[WMARK_MIN] + normal->lowmem_reserve[ZONE_HIGHMEM];
	assert_int_equal(normal->nr_free, left);
	assert_int_equal(dma->nr_free,
			 dma->watermark[WMARK_MIN] + dma->lowmem_reserve[ZONE_HIGHMEM]);
	/* READY_ONLY never goes below high */
	assert_int_equal(
		try_alloc(&f, d, ARENA_GFP_KERNEL | GFP_READY_ONLY | GFP_HOLE_OK, 0, 0, &out),
		ARENA_E_NO_MEMORY);
	hoard_all(&f, &h, d, ARENA_GFP_KERNEL, 0);
	assert_int_equal(normal->nr_free, normal->watermark[WMARK_MIN]);
	assert_true(dma->nr_free > dma->watermark[WMARK_MIN]);
	/* atomic requests go on to 3/8 of min */
	hoard_all(&f, &h, d, ARENA_GFP_ATOMIC, 0);
	assert_int_equal(normal->nr_free, normal->watermark[WMARK_MIN] * 3 / 8);
	hoard_all(&f, &h, d, ARENA_GFP_DMA, 0);
	assert_int_equal(dma->nr_free, dma->watermark[WMARK_MIN]);
	assert_true(phys_is_valid(f.phys));
	hoard_free(&f, &h);
	end();
}

static void test_highatomic(void **state)
{
	struct hoard h = {0}, atomic = {0};
	struct alloc_result out;
	struct zone *normal;
	size_t n;

	(void)state;
	start(256 * MIB, 1);
	normal = zone_at(&f, 0, ZONE_NORMAL);
	hoard_all(&f, &h, d, ARENA_GFP_KERNEL, 0);
	/* room for one block of order 4 that only an atomic request may take */
	for (n = 0; normal->nr_free < normal->watermark[WMARK_MIN] + 8; n++)
		put_page(f.phys, h.pfn[--h.nr]);
	for (; n < 600; n++)
		put_page(f.phys, h.pfn[--h.nr]);
	hoard_all(&f, &h, d, ARENA_GFP_KERNEL, 4);
	assert_int_equal(normal->nr_highatomic, 0);
	assert_int_equal(try_alloc(&f, d, ARENA_GFP_ATOMIC, 4, 0, &out), 0);
	hoard_add(&atomic, out.pfn);
	normal = pfn_zone(f.phys, out.pfn);
	assert_int_equal(normal->nr_highatomic, PAGEBLOCK_PAGES);
	assert_int_equal(zone_pageblocks(normal, MIGRATE_HIGHATOMIC), 1);
	assert_true(phys_is_valid(f.phys));
	/* a second one would be more than one hundredth of the zone */
	while (try_alloc(&f, d, ARENA_GFP_ATOMIC | ARENA_GFP_NOWARN, 4, 0, &out) == 0)
		hoard_add(&atomic, out.pfn);
	assert_int_equal(normal->nr_highatomic, PAGEBLOCK_PAGES);
	/* free pages of the reserve come back before an ordinary request fails */
	for (size_t i = 0; i < atomic.nr; i++)
		put_page(f.phys, atomic.pfn[i]);
	atomic.nr = 0;
	assert_true(zone_free_blocks(normal, 4, MIGRATE_HIGHATOMIC) +
			    zone_free_blocks(normal, 5, MIGRATE_HIGHATOMIC) +
			    zone_free_blocks(normal, 6, MIGRATE_HIGHATOMIC) >
		    0);
	hoard_free(&f, &h);
	hoard_all(&f, &h, d, ARENA_GFP_KERNEL, 0);
	assert_int_equal(normal->nr_highatomic, 0);
	assert_true(phys_is_valid(f.phys));
	free(atomic.pfn);
	hoard_free(&f, &h);
	end();
}

/* One type runs out: whole pageblocks change sides, and movable requests take only pages. */
static void test_fallback(void **state)
{
	struct hoard h = {0};
	struct zone *high;
	uint64_t blocks;
	pfn_t pfn, block;

	(void)state;
	start(64 * MIB, 1);
	f.state.tunables[TUNABLE_MIN_FREE_KBYTES] = 4; /* watermarks do not matter here */
	phys_setup_watermarks(f.phys);
	high = zone_at(&f, 0, ZONE_HIGHMEM);
	blocks = zone_pageblocks(high, MIGRATE_MOVABLE);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	/* a movable pageblock in use with one free page in four */
	block = ALIGN_UP(high->start, PAGEBLOCK_PAGES) + 2 * PAGEBLOCK_PAGES;
	for (size_t i = 0; i < h.nr; i++) {
		if (h.pfn[i] - block < PAGEBLOCK_PAGES && h.pfn[i] % 4 < 1) {
			put_page(f.phys, h.pfn[i]);
			h.pfn[i--] = h.pfn[--h.nr];
		}
	}
	drain_pages(f.phys, NULL);
	assert_int_equal(zone_free_blocks(high, 0, MIGRATE_UNMOVABLE), 0);
	pfn = must_alloc(&f, d, ARENA_GFP_HIGHMEM, 0);
	assert_int_equal(ALIGN_DOWN(pfn, PAGEBLOCK_PAGES), block);
	/* the unmovable request took the whole pageblock */
	assert_int_equal(zone_pageblocks(high, MIGRATE_UNMOVABLE), 1);
	assert_int_equal(zone_pageblocks(high, MIGRATE_MOVABLE), blocks - 1);
	assert_true(zone_free_blocks(high, 0, MIGRATE_UNMOVABLE) > 0);
	assert_int_equal(event(&f, EV_ARENA_PAGEBLOCK_STEAL), 1);
	assert_true(phys_is_valid(f.phys));
	put_page(f.phys, pfn);
	/* make it unmovable in truth: its movable pages go, unmovable ones come */
	for (size_t i = 0; i < h.nr; i++) {
		if (h.pfn[i] - block < PAGEBLOCK_PAGES) {
			put_page(f.phys, h.pfn[i]);
			h.pfn[i--] = h.pfn[--h.nr];
		}
	}
	drain_pages(f.phys, NULL);
	for (unsigned i = 0; i < 400; i++) {
		struct alloc_request rq = request(ARENA_GFP_HIGHMEM, 0, PFN_NONE);
		struct alloc_result out;

		rq.owner = PG_KERNEL;
		assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
		assert_int_equal(ALIGN_DOWN(out.pfn, PAGEBLOCK_PAGES), block);
		hoard_add(&h, out.pfn);
	}
	/* leave single free pages only, so that nothing large is found */
	for (pfn_t i = block; i < block + PAGEBLOCK_PAGES; i++) {
		pfn_t head = compound_head(f.phys, i);

		if (head == PFN_NONE || i % 8)
			continue;
		for (size_t k = 0; k < h.nr; k++) {
			if (h.pfn[k] == i) {
				put_page(f.phys, i);
				h.pfn[k] = h.pfn[--h.nr];
				break;
			}
		}
	}
	while (zone_free_blocks(high, 4, MIGRATE_UNMOVABLE) +
	       zone_free_blocks(high, 5, MIGRATE_UNMOVABLE) +
	       zone_free_blocks(high, 6, MIGRATE_UNMOVABLE))
		hoard_add(&h, must_alloc(&f, d, ARENA_GFP_HIGHMEM, 4));
	drain_pages(f.phys, NULL);
	pfn = must_alloc(&f, d, GFP_USER_MOVABLE, 0);
	assert_int_equal(ALIGN_DOWN(pfn, PAGEBLOCK_PAGES), block);
	assert_int_equal(zone_pageblocks(high, MIGRATE_UNMOVABLE), 1);
	assert_true(phys_is_valid(f.phys));
	put_page(f.phys, pfn);
	hoard_free(&f, &h);
	end();
}

static struct hoard relieved;
static unsigned relieve_calls;

static uint64_t relieve(void *ctx, struct zone *z, unsigned order)
{
	unsigned n = 0;

	(void)order;
	assert_ptr_equal(ctx, &relieved);
	relieve_calls++;
	for (size_t i = 0; i < relieved.nr && n < 64; i++) {
		if (pfn_zone(f.phys, relieved.pfn[i]) != z)
			continue;
		put_page(f.phys, relieved.pfn[i]);
		relieved.pfn[i--] = relieved.pfn[--relieved.nr];
		n++;
	}
	return n;
}

static void test_pressure(void **state)
{
	static const struct phys_pressure_ops ops = {relieve};
	struct hoard h = {0};
	struct domain *e;
	size_t taken;

	(void)state;
	start(64 * MIB, 1);
	e = new_domain(&f, 2);
	/* memory in the wrong hands: free blocks cached in one domain serve another */
	hoard_all(&f, &h, e, GFP_USER_MOVABLE, 0);
	taken = h.nr;
	assert_true(domain_owned_blocks(e) > 28);
	hoard_free(&f, &h);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	assert_in_range(h.nr, taken - 4, taken + 4);
	assert_true(phys_is_valid(f.phys));
	hoard_free(&f, &h);
	/* leaves and pairs of leaves likewise */
	assert_in_range(hoard_all(&f, &h, e, GFP_USER_MOVABLE | GFP_HOLE_OK, 10), 12, 16);
	hoard_free(&f, &h);
	assert_in_range(hoard_all(&f, &h, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 9), 25, 32);
	hoard_free(&f, &h);
	/* the rooms above free something */
	hoard_all(&f, &relieved, d, GFP_USER_MOVABLE, 0);
	phys_set_pressure_ops(f.phys, &ops, &relieved);
	for (unsigned i = 0; i < 1000; i++)
		hoard_add(&h, must_alloc(&f, d, GFP_USER_MOVABLE, 0));
	assert_true(relieve_calls > 0 && relieve_calls < 1000);
	assert_true(event(&f, EV_ALLOCSTALL_HIGHMEM) > 0);
	phys_set_pressure_ops(f.phys, NULL, NULL);
	hoard_free(&f, &h);
	hoard_free(&f, &relieved);
	domain_put(e);
	end();
}

static void test_cache_limit(void **state)
{
	struct hoard h = {0};

	(void)state;
	start(64 * MIB, 1);
	f.state.tunables[TUNABLE_ZERO_POOL_KBYTES] = 4096;
	for (unsigned i = 0; i < 20; i++)
		hoard_add(&h, must_alloc(&f, d, GFP_USER_MOVABLE, 9));
	hoard_free(&f, &h);
	/* twice the pool stays, the rest went back */
	assert_int_equal(domain_owned_blocks(d), 4);
	assert_int_equal(phys_reclaim_blocks(f.phys, d, 1), 3);
	assert_int_equal(domain_owned_blocks(d), 1);
	assert_int_equal(phys_reclaim_blocks(f.phys, NULL, 0), 1);
	assert_int_equal(phys_backed_bytes(f.phys), 0);
	end();
}

static void test_pcp(void **state)
{
	struct pcp_info info;
	struct zone *high;
	struct hoard h = {0};

	(void)state;
	start(256 * MIB, 1);
	high = zone_at(&f, 0, ZONE_HIGHMEM);
	zone_pcp_info(high, 0, &info);
	assert_int_equal(info.count, 0);
	assert_int_equal(info.batch, 15); /* 48128 / 1024 / 4 = 11, near a power of two */
	assert_true(info.high >= 4 * info.batch);
	hoard_add(&h, must_alloc(&f, d, GFP_USER_MOVABLE, 0));
	zone_pcp_info(high, 0, &info);
	assert_int_equal(info.count, info.batch - 1);
	assert_int_equal(high->nr_pcp, info.count);
	/* neighbours come one after the other */
	for (unsigned i = 1; i < 200; i++) {
		hoard_add(&h, must_alloc(&f, d, GFP_USER_MOVABLE, 0));
		assert_int_equal(h.pfn[i], h.pfn[0] + i);
	}
	hoard_free(&f, &h);
	zone_pcp_info(high, 0, &info);
	assert_in_range(info.count, 1, info.high);
	zone_pcp_info(high, 1, &info);
	assert_int_equal(info.count, 0);
	drain_pages(f.phys, d);
	assert_int_equal(high->nr_pcp, 0);
	end();
}

static void test_report(void **state)
{
	struct hoard h = {0};
	struct alloc_result out;
	char text[4096];
	int fds[2];
	ssize_t n;

	(void)state;
	start(64 * MIB, 1);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	assert_int_equal(pipe(fds), 0);
	log_set_fd(fds[1]);
	log_set_level(LOG_LEVEL_WARNING);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(try_alloc(&f, d, GFP_USER_MOVABLE, 5, 0, &out), ARENA_E_NO_MEMORY);
	log_set_level(LOG_LEVEL_ERR);
	log_set_fd(-1);
	n = read(fds[0], text, sizeof(text) - 1);
	assert_true(n > 0);
	text[n] = 0;
	assert_non_null(strstr(text, "order:5"));
	assert_non_null(strstr(text, "node 0 HighMem: free"));
	/* one a second */
	assert_null(strstr(strstr(text, "order:5") + 1, "order:5"));
	close(fds[0]);
	close(fds[1]);
	hoard_free(&f, &h);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_life_of_a_block),
		cmocka_unit_test(test_domains),
		cmocka_unit_test(test_contents_and_events),
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_zonelist),
		cmocka_unit_test(test_watermarks),
		cmocka_unit_test(test_lowmem_reserve),
		cmocka_unit_test(test_highatomic),
		cmocka_unit_test(test_fallback),
		cmocka_unit_test(test_pressure),
		cmocka_unit_test(test_cache_limit),
		cmocka_unit_test(test_pcp),
		cmocka_unit_test(test_report),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
