/* SPDX-License-Identifier: MIT */
/* kzerod fills the pools, goes idle, gets out of the way, and what it hands out is zero. */
#include <poll.h>

#include "daemon/phys/internal.h"
#include "tests/phys_test.h"

static struct arena_fixture f;
static struct domain *d;

/* As the event loop does: collect whenever the eventfd is readable, until nothing is left to do. */
static void run_until_idle(void)
{
	struct pollfd p = {.fd = kzerod_eventfd(f.phys), .events = POLLIN};

	kzerod_collect(f.phys);
	while (!kzerod_idle(f.phys)) {
		assert_int_equal(poll(&p, 1, 60000), 1); /* the lowest priority there is */
		kzerod_collect(f.phys);
		assert_true(phys_is_valid(f.phys));
	}
	assert_int_equal(poll(&p, 1, 0), 0);
}

static void start(uint64_t size, uint64_t pool)
{
	fixture_start(&f, size, 1, 2);
	f.state.tunables[TUNABLE_ZERO_POOL_KBYTES] = pool >> 10;
	assert_int_equal(kzerod_eventfd(f.phys), -1);
	assert_int_equal(kzerod_start(f.phys), 0);
	d = new_domain(&f, 1);
}

static void end(void)
{
	domain_put(d);
	run_until_idle();
	assert_int_equal(phys_free_pages(f.phys), phys_total_pages(f.phys));
	fixture_end(&f);
}

static void test_pool(void **state)
{
	struct alloc_result out;
	pfn_t first, last;
	uint64_t idle_time;

	(void)state;
	start(256 * MIB, 32 * MIB);
	/* nothing for a domain that never allocated */
	run_until_idle();
	assert_int_equal(phys_zeroed_pages(f.phys, NULL), 0);
	first = must_alloc(&f, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 9);
	run_until_idle();
	assert_int_equal(phys_zeroed_pages(f.phys, d), 32 * MIB >> 12);
	assert_int_equal(event(&f, EV_ARENA_ZEROED_BACKGROUND), 32 * MIB >> 12);
	idle_time = kzerod_cpu_time(f.phys);
	assert_true(idle_time > 0);
	run_until_idle();
	assert_int_equal(kzerod_cpu_time(f.phys), idle_time);
	/* the pool continues what the domain has, without a gap */
	last = first;
	for (unsigned i = 0; i < 16; i++) {
		struct alloc_request rq = {.domain = d,
					   .gfp = GFP_USER_MOVABLE | GFP_READY_ONLY,
					   .order = 9,
					   .hint = last + 512,
					   .owner = PG_ANON};
		const unsigned char *p;

		assert_int_equal(alloc_pages(f.phys, &rq, &out), 0);
		assert_false(out.hole);
		assert_int_equal(out.pfn, last + 512);
		last = out.pfn;
		p = domain_address(d, out.pfn);
		assert_true(p[0] == 0 && !memcmp(p, p + 1, 2 * MIB - 1));
		memset(domain_address(d, out.pfn), 0xff, 2 * MIB);
	}
	assert_int_equal(event(&f, EV_ARENA_ZEROED_READY), 16 * 512);
	for (pfn_t pfn = first; pfn <= last; pfn += 512)
		put_page(f.phys, pfn);
	/* dirty blocks are what is zeroed now, and nothing more is claimed */
	last = domain_owned_blocks(d);
	run_until_idle();
	assert_int_equal(domain_owned_blocks(d), last);
	assert_int_equal(phys_zeroed_pages(f.phys, d), 32 * MIB >> 12);
	for (unsigned i = 0; i < 16; i++) {
		const unsigned char *p;

		assert_int_equal(try_alloc(&f, d, GFP_USER_MOVABLE | GFP_READY_ONLY, 9, 0, &out),
				 0);
		p = domain_address(d, out.pfn);
		assert_true(p[0] == 0 && !memcmp(p, p + 1, 2 * MIB - 1));
		put_page(f.phys, out.pfn);
	}
	end();
}

/* Small arenas: a quarter stays nobody's, and a pool never stands in an allocation's way. */
static void test_pressure(void **state)
{
	struct hoard h = {0};
	struct domain *e;
	size_t alone;

	(void)state;
	start(64 * MIB, UINT64_C(4) << 30);
	e = new_domain(&f, 2);
	hoard_all(&f, &h, e, GFP_USER_MOVABLE, 0);
	alone = h.nr;
	hoard_free(&f, &h);
	put_page(f.phys, must_alloc(&f, d, GFP_USER_MOVABLE, 0));
	run_until_idle();
	assert_true(phys_zeroed_pages(f.phys, NULL) > 4096);
	for (unsigned round = 0; round < 6; round++) {
		struct domain *who = round & 1 ? d : e;
		struct alloc_result out;

		for (;;) {
			if (try_alloc(&f, who, GFP_USER_MOVABLE | ARENA_GFP_NOWARN, 0, 0, &out))
				break;
			hoard_add(&h, out.pfn);
			/* batches are under way at every moment of it */
			if (h.nr % 128 == 0)
				kzerod_collect(f.phys);
		}
		assert_true(phys_is_valid(f.phys));
		assert_in_range(h.nr, alone - 8, alone + 8);
		for (size_t i = 0; i < h.nr; i += 64)
			memset(domain_address(who, h.pfn[i]), 1, 4096);
		hoard_free(&f, &h);
		kzerod_collect(f.phys);
	}
	domain_put(e);
	end();
}

/* How badly more is wanted follows the pool: 16 leaves, of which a quarter has to be left. */
static void test_need(void **state)
{
	pfn_t taken[16];
	unsigned n;

	(void)state;
	start(256 * MIB, 32 * MIB);
	assert_int_equal(kzerod_need(f.phys), KZEROD_NONE);
	put_page(f.phys, must_alloc(&f, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 9));
	assert_int_equal(kzerod_need(f.phys), KZEROD_NOW);
	run_until_idle();
	assert_int_equal(kzerod_need(f.phys), KZEROD_NONE);
	for (n = 0; n < 13; n++) {
		taken[n] = must_alloc(&f, d, GFP_USER_MOVABLE | GFP_READY_ONLY, 9);
		/* An answer changes nothing. */
		for (int i = 0; i < 2; i++)
			assert_int_equal(kzerod_need(f.phys), n < 12 ? KZEROD_LATER : KZEROD_NOW);
		kzerod_take_back(f.phys);
		assert_int_equal(phys_zeroed_pages(f.phys, d), (15 - n) * 512);
	}
	kzerod_collect(f.phys);
	run_until_idle();
	assert_int_equal(phys_zeroed_pages(f.phys, d), 32 * MIB >> 12);
	while (n)
		put_page(f.phys, taken[--n]);
	end();
}

static uint32_t held;

static void hold(struct work *w)
{
	(void)w;
	while (!load_acquire(&held))
		os_futex_wait(&held, 0, 0);
}

/* A worker that gets no CPU at all keeps nobody from the memory it was to zero. */
static void test_starved(void **state)
{
	struct kz_batch first = {.work.run = hold};
	struct hoard h = {0};
	uint32_t id;
	struct domain *e;
	size_t alone;

	(void)state;
	start(64 * MIB, UINT64_C(4) << 30);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	alone = h.nr;
	hoard_free(&f, &h);
	e = new_domain(&f, 2);
	id = domain_id(e);
	held = 0;
	workqueue_queue(f.phys->kz.queue, &first.work);
	for (unsigned i = 0; i < 2; i++)
		put_page(f.phys, must_alloc(&f, i ? e : d, GFP_USER_MOVABLE, 9));
	kzerod_collect(f.phys);
	assert_false(kzerod_idle(f.phys));
	domain_put(e);
	assert_ptr_equal(domain_by_id(f.phys, id), e);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	assert_null(domain_by_id(f.phys, id));
	assert_in_range(h.nr, alone - 8, alone + 8);
	assert_true(phys_is_valid(f.phys));
	hoard_free(&f, &h);
	store_release(&held, 1);
	os_futex_wake(&held, 1);
	end();
}

/* A domain whose blocks are under way ends when they come back; so does the arena. */
static void test_end_under_way(void **state)
{
	struct domain *e;
	uint32_t id;

	(void)state;
	start(256 * MIB, 64 * MIB);
	e = new_domain(&f, 2);
	id = domain_id(e);
	put_page(f.phys, must_alloc(&f, e, GFP_USER_MOVABLE, 9));
	kzerod_collect(f.phys);
	assert_false(kzerod_idle(f.phys));
	domain_put(e);
	assert_ptr_equal(domain_by_id(f.phys, id), e);
	run_until_idle();
	assert_null(domain_by_id(f.phys, id));
	/* sections wait for it too */
	put_page(f.phys, must_alloc(&f, d, GFP_USER_MOVABLE, 9));
	kzerod_collect(f.phys);
	for (unsigned s = 0; s < phys_nr_sections(f.phys); s++)
		assert_int_equal(section_offline(f.phys, s), 0);
	assert_int_equal(phys_total_pages(f.phys), 0);
	for (unsigned s = 0; s < phys_nr_sections(f.phys); s++)
		assert_int_equal(section_online(f.phys, s), 0);
	put_page(f.phys, must_alloc(&f, d, GFP_USER_MOVABLE, 9));
	kzerod_collect(f.phys);
	kzerod_stop(f.phys);
	assert_true(kzerod_idle(f.phys));
	assert_true(phys_is_valid(f.phys));
	assert_int_equal(kzerod_start(f.phys), 0);
	kzerod_collect(f.phys);
	f.phys = phys_destroy(f.phys);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pool),          cmocka_unit_test(test_need),
		cmocka_unit_test(test_pressure),      cmocka_unit_test(test_starved),
		cmocka_unit_test(test_end_under_way),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
