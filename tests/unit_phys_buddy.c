/* SPDX-License-Identifier: MIT */
/*
 * Two million random allocations and frees of every kind in three domains, against a map of who
 * owns each frame; contents; and the way back to the picture at boot.
 */
#include "tests/phys_test.h"

#define NR_OPS 2000000u
#define CHECK_EVERY 8000u
#define ARENA_BYTES (64 * MIB)
#define NR_FRAMES (ARENA_BYTES >> 12)
#define NR_DOMAINS 3u
#define MAX_LIVE 6000u

struct block {
	pfn_t pfn;
	uint8_t order, domain;
	uint8_t refs;
	bool stamped;
};

static struct arena_fixture f;
static struct domain *domain[NR_DOMAINS];
static uint8_t owner[NR_FRAMES]; /* domain + 1, 0: free */
static struct block live[MAX_LIVE];
static unsigned nr_live;
static uint64_t used[NR_DOMAINS];
static unsigned most_live;

static const unsigned gfps[] = {
	ARENA_GFP_KERNEL,
	ARENA_GFP_RECLAIMABLE | ARENA_GFP_HIGHMEM,
	GFP_USER_MOVABLE,
	GFP_USER_MOVABLE,
	GFP_USER_MOVABLE | ARENA_GFP_ATOMIC,
	ARENA_GFP_RECLAIMABLE,
	ARENA_GFP_ATOMIC | ARENA_GFP_DMA,
	ARENA_GFP_MOVABLE | ARENA_GFP_THISNODE,
	ARENA_GFP_HIGHMEM | GFP_NO_ZERO,
	GFP_USER_MOVABLE | GFP_HOLE_OK,
	GFP_USER_MOVABLE | GFP_READY_ONLY | GFP_HOLE_OK,
	ARENA_GFP_RECLAIMABLE | GFP_READY_ONLY,
};

static uint64_t *stamp_of(const struct block *b)
{
	return domain_address(domain[b->domain], b->pfn);
}

/* First and last word of every page of a small block, of the first and last of a large one. */
static void check_zero(const struct block *b, bool all)
{
	const uint64_t *p = stamp_of(b);
	size_t words = ((size_t)4096 << b->order) / 8;

	for (size_t i = 0; i < words; i += all ? 1 : 511)
		if (p[i])
			fail_msg("frame %u order %u: word %zu is not zero", b->pfn, b->order, i);
}

static void stamp(struct block *b)
{
	uint64_t *p = stamp_of(b);
	size_t words = ((size_t)4096 << b->order) / 8;

	for (size_t i = 0; i < words; i += 511)
		p[i] = b->pfn + 1;
	b->stamped = true;
}

static void check_stamp(const struct block *b)
{
	const uint64_t *p = stamp_of(b);
	size_t words = ((size_t)4096 << b->order) / 8;

	for (size_t i = 0; b->stamped && i < words; i += 511)
		if (p[i] != b->pfn + UINT64_C(1))
			fail_msg("frame %u order %u lost its contents", b->pfn, b->order);
}

static void model_claim(struct block b)
{
	for (pfn_t i = b.pfn; i < b.pfn + (1u << b.order); i++) {
		if (owner[i])
			fail_msg("frame %u was given twice", i);
		owner[i] = (uint8_t)(b.domain + 1);
	}
	used[b.domain] += UINT64_C(1) << b.order;
	live[nr_live++] = b;
}

static void check_block(const struct block *b, unsigned gfp, unsigned cpu, bool hole)
{
	const struct zone *z = pfn_zone(f.phys, b->pfn);

	assert_true(IS_ALIGNED(b->pfn, 1u << b->order));
	assert_ptr_equal(pfn_domain(f.phys, b->pfn), domain[b->domain]);
	assert_int_equal(compound_head(f.phys, b->pfn + (1u << b->order) - 1), b->pfn);
	if (gfp & ARENA_GFP_DMA)
		assert_int_equal(z->type, ZONE_DMA);
	if (!(gfp & ARENA_GFP_HIGHMEM))
		assert_int_not_equal(z->type, ZONE_HIGHMEM);
	if (gfp & ARENA_GFP_THISNODE)
		assert_int_equal(z->node, numa_cpu_to_node(&f.topology, cpu));
	assert_true(!hole || (gfp & GFP_HOLE_OK && b->order >= 9));
}

static void op_alloc(struct prng *r)
{
	unsigned gfp = gfps[prng_below(r, ARRAY_SIZE(gfps))], cpu = (unsigned)prng_below(r, 4);
	uint64_t pick = prng_below(r, 512);
	unsigned order = pick < 400 ? 0 : (unsigned)prng_below(r, pick < 510 ? 5 : 11);
	struct block b = {
		.order = (uint8_t)order, .domain = (uint8_t)prng_below(r, NR_DOMAINS), .refs = 1};
	struct alloc_request rq = {
		.domain = domain[b.domain],
		.gfp = gfp | ARENA_GFP_NOWARN,
		.order = order,
		.cpu = cpu,
		.hint = prng_below(r, 4) ? PFN_NONE
					 : (pfn_t)(prng_below(r, NR_FRAMES) >> order << order),
		.owner = PG_ANON,
		.mapping = 7,
		.index = nr_live,
	};
	struct alloc_result out;

	if (nr_live >= most_live || alloc_pages(f.phys, &rq, &out))
		return;
	b.pfn = out.pfn;
	model_claim(b);
	check_block(&b, gfp, cpu, out.hole);
	if (gfp & GFP_NO_ZERO)
		return;
	if (!(order >= 5 && prng_below(r, 8)))
		check_zero(&b, order < 2 && prng_below(r, 8) == 0);
	if (order < 9 || prng_below(r, 4) == 0)
		stamp(&live[nr_live - 1]);
}

static void op_free(struct prng *r)
{
	unsigned i;
	struct block b;

	if (!nr_live)
		return;
	i = (unsigned)prng_below(r, nr_live);
	b = live[i];
	check_stamp(&b);
	put_page(f.phys, b.pfn);
	if (--live[i].refs)
		return;
	live[i] = live[--nr_live];
	used[b.domain] -= UINT64_C(1) << b.order;
	memset(owner + b.pfn, 0, (size_t)1 << b.order);
}

static void op_other(struct prng *r)
{
	unsigned i = nr_live ? (unsigned)prng_below(r, nr_live) : 0;
	struct block b;

	switch (prng_below(r, 32)) {
	case 0 ... 7:
		drain_pages(f.phys, prng_below(r, 2) ? NULL : domain[prng_below(r, NR_DOMAINS)]);
		break;
	case 8:
		phys_reclaim_blocks(f.phys, domain[prng_below(r, NR_DOMAINS)], prng_below(r, 3));
		break;
	case 9 ... 20:
		if (nr_live && live[i].refs < 3) {
			get_page(f.phys, live[i].pfn);
			live[i].refs++;
		}
		break;
	default:
		if (!nr_live || live[i].refs != 1 || live[i].order > 6 ||
		    nr_live + (1u << live[i].order) > MAX_LIVE)
			break;
		b = live[i];
		split_page(f.phys, b.pfn);
		live[i].order = 0;
		live[i].stamped = false;
		for (pfn_t k = 1; k < 1u << b.order; k++)
			live[nr_live++] =
				(struct block){.pfn = b.pfn + k, .domain = b.domain, .refs = 1};
	}
}

static uint64_t model_free(void)
{
	uint64_t n = NR_FRAMES;

	for (unsigned d = 0; d < NR_DOMAINS; d++)
		n -= used[d];
	return n;
}

static void check_all(void)
{
	uint64_t n = 0;

	if (!phys_is_valid(f.phys))
		fail_msg("phys is not valid");
	for (pfn_t i = 0; i < NR_FRAMES; i++)
		n += !owner[i];
	assert_int_equal(n, model_free());
	assert_int_equal(phys_free_pages(f.phys), n);
	for (unsigned d = 0; d < NR_DOMAINS; d++)
		assert_int_equal(domain_used_pages(domain[d]), used[d]);
}

struct picture {
	uint64_t blocks[2][NR_ZONE_TYPES][NR_ORDERS][NR_MIGRATETYPES];
};

static void take_picture(struct picture *pic)
{
	memset(pic, 0, sizeof(*pic));
	for (unsigned n = 0; n < 2; n++)
		for (unsigned z = 0; z < NR_ZONE_TYPES; z++)
			for (unsigned o = 0; o < NR_ORDERS; o++)
				for (unsigned t = 0; t < NR_MIGRATETYPES; t++)
					pic->blocks[n][z][o][t] =
						zone_free_blocks(zone_at(&f, n, z), o, t);
}

static void test_random(void **state)
{
	struct prng r = {test_seed()};
	struct picture before, after;

	(void)state;
	fixture_init(&f, ARENA_BYTES, 2, 4);
	f.config.section_size = 4 * MIB;
	f.config.zone_dma = 4 * MIB;
	f.config.zone_normal = 12 * MIB;
	fixture_boot(&f);
	take_picture(&before);
	for (unsigned d = 0; d < NR_DOMAINS; d++)
		domain[d] = new_domain(&f, 1000 + d);
	for (unsigned i = 0; i < NR_OPS; i++) {
		/* The load swings, and fills the arena now and then. */
		uint64_t up = i / 20000 % 2 ? 420 : 580;
		uint64_t what = prng_below(&r, 1000);

		most_live = i / 40000 % 8 ? 2500 : MAX_LIVE;
		if (what < up)
			op_alloc(&r);
		else if (what < 998)
			op_free(&r);
		else
			op_other(&r);
		if (i % CHECK_EVERY == 0)
			check_all();
	}
	check_all();
	while (nr_live)
		op_free(&r);
	check_all();
	for (unsigned d = 0; d < NR_DOMAINS; d++)
		domain[d] = domain_put(domain[d]);
	assert_true(phys_is_valid(f.phys));
	take_picture(&after);
	assert_memory_equal(&before, &after, sizeof(before));
	assert_int_equal(phys_backed_bytes(f.phys), 0);
	fixture_end(&f);
}

/* Whatever path memory takes back to a caller, it comes as zeros. */
static void test_contents(void **state)
{
	static const unsigned orders[] = {0, 3, 8, 9, 10};
	struct hoard h = {0};
	struct domain *d, *e;

	(void)state;
	fixture_start(&f, ARENA_BYTES, 2, 2);
	d = new_domain(&f, 1);
	e = new_domain(&f, 2);
	for (unsigned round = 0; round < 20; round++) {
		unsigned order = orders[round % ARRAY_SIZE(orders)];
		struct domain *who = round / 5 % 2 ? e : d;
		size_t size = (size_t)4096 << order;

		assert_true(hoard_all(&f, &h, who, GFP_USER_MOVABLE | (round % 3 ? 0 : GFP_HOLE_OK),
				      order) > 0);
		for (size_t i = 0; i < h.nr; i++) {
			unsigned char *p = domain_address(who, h.pfn[i]);

			assert_true(p[0] == 0 && !memcmp(p, p + 1, size - 1));
			memset(p, 0xa5, size);
		}
		hoard_free(&f, &h);
		if (round % 4 == 0)
			drain_pages(f.phys, NULL);
	}
	assert_true(phys_is_valid(f.phys));
	domain_put(d);
	domain_put(e);
	fixture_end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_contents),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
