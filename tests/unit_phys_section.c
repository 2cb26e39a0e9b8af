/* SPDX-License-Identifier: MIT */
/* Boot layouts, sections offline and online, reserved ranges, an arena larger than the host. */
#include "tests/phys_test.h"
#include "tests/sanitized.h"

static struct arena_fixture f;

static void test_layout(void **state)
{
	(void)state;
	fixture_start(&f, 256 * MIB + 5, 2, 4);
	assert_int_equal(phys_nr_frames(f.phys), 256 * MIB >> 12);
	for (unsigned n = 0; n < 2; n++) {
		struct node *node = phys_node(f.phys, n);
		pfn_t at = node->start;

		assert_int_equal(node->start, n * 32768);
		assert_int_equal(node->end, (n + 1) * 32768);
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++) {
			assert_int_equal(node->zone[t].start, at);
			assert_int_equal(node->zone[t].start % PAGEBLOCK_PAGES, 0);
			at = node->zone[t].end;
		}
		assert_int_equal(at, node->end);
		assert_int_equal(node->zone[ZONE_DMA].present, 512);
		assert_int_equal(node->zone[ZONE_NORMAL].present, 8192);
		/* itself first, and HIGHMEM before NORMAL before DMA */
		for (unsigned i = 0; i < 6; i++) {
			assert_int_equal(node->zonelist[i]->node, i < 3 ? n : 1 - n);
			assert_int_equal(node->zonelist[i]->type, ZONE_HIGHMEM - i % 3);
		}
		assert_null(node->zonelist[6]);
	}
	assert_int_equal(phys_total_pages(f.phys), 65536);
	assert_int_equal(phys_free_pages(f.phys), 65536);
	assert_null(pfn_to_page(f.phys, 65536));
	assert_int_equal(page_to_pfn(f.phys, pfn_to_page(f.phys, 4711)), 4711);
	assert_int_equal(phys_memblock(f.phys)->memory.nr, 2);
	fixture_end(&f);
}

static void test_bad_layouts(void **state)
{
	struct phys *p;

	(void)state;
	fixture_init(&f, 64 * MIB, 2, 2);
	f.config.node_size[0] = 64 * MIB;
	f.config.node_size[1] = 2 * MIB;
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	f.config.node_size[1] = 0;
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	fixture_init(&f, 2 * MIB, 2, 2);
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	fixture_init(&f, 64 * MIB, 1, 2);
	f.config.zone_dma = 48 * MIB;
	f.config.zone_normal = 32 * MIB;
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	fixture_init(&f, 64 * MIB, 1, 2);
	f.config.section_size = 3 * MIB;
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	fixture_init(&f, 64 * MIB, 1, 2);
	f.config.nr_reserved = 1;
	f.config.reserved[0] = (struct phys_range){60 * MIB, 8 * MIB};
	assert_int_equal(phys_create(&f.config, &f.state, &p), ARENA_E_INVALID);
	/* the smallest there is */
	fixture_start(&f, 2 * MIB, 1, 1);
	fixture_end(&f);
}

static void test_reserved(void **state)
{
	struct domain *d;
	struct hoard h = {0};

	(void)state;
	fixture_init(&f, 64 * MIB, 1, 1);
	f.config.nr_reserved = 2;
	f.config.reserved[0] = (struct phys_range){32 * MIB + 4096, 4096};
	f.config.reserved[1] = (struct phys_range){40 * MIB - 1, 2};
	fixture_boot(&f);
	assert_int_equal(phys_total_pages(f.phys), 16384 - 3 * 512);
	d = new_domain(&f, 1);
	assert_true(hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0) > 10000);
	for (size_t i = 0; i < h.nr; i++) {
		uint64_t block = h.pfn[i] >> 9;

		assert_true(block != 16 && block != 19 && block != 20);
	}
	assert_int_equal(section_offline(f.phys, 0), ARENA_E_BUSY);
	hoard_free(&f, &h);
	assert_int_equal(section_offline(f.phys, 0), ARENA_E_BUSY); /* reserved */
	domain_put(d);
	fixture_end(&f);
}

/* Take sections out while memory is in use elsewhere; nothing of them is given out meanwhile. */
static void test_offline(void **state)
{
	struct hoard h = {0};
	struct domain *d;
	unsigned nr, off = 0;
	uint64_t free_before;

	(void)state;
	fixture_init(&f, 64 * MIB, 2, 2);
	f.config.section_size = 2 * MIB;
	fixture_boot(&f);
	nr = phys_nr_sections(f.phys);
	assert_int_equal(nr, 32);
	assert_int_equal(section_offline(f.phys, nr), ARENA_E_INVALID);
	assert_int_equal(section_online(f.phys, 0), ARENA_E_INVALID);
	d = new_domain(&f, 1);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	for (size_t i = 0; i < h.nr; i++) {
		/* free odd sections, and one page of each even one */
		if (h.pfn[i] >> 9 & 1 || h.pfn[i] % 512 == 7) {
			put_page(f.phys, h.pfn[i]);
			h.pfn[i--] = h.pfn[--h.nr];
		}
	}
	free_before = phys_free_pages(f.phys);
	for (unsigned s = 0; s < nr; s++) {
		int r = section_offline(f.phys, s);

		assert_true(phys_is_valid(f.phys));
		if (r) {
			assert_int_equal(r, ARENA_E_BUSY);
			assert_int_equal(section_state(f.phys, s), SECTION_ONLINE);
			continue;
		}
		off++;
		assert_int_equal(section_offline(f.phys, s), ARENA_E_INVALID);
		assert_null(pfn_to_page(f.phys, s * 512));
	}
	assert_true(off >= 16);
	assert_int_equal(phys_free_pages(f.phys), free_before - off * 512);
	assert_int_equal(phys_total_pages(f.phys), 16384 - off * 512);
	hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0);
	for (size_t i = 0; i < h.nr; i++)
		assert_int_equal(section_state(f.phys, h.pfn[i] >> 9), SECTION_ONLINE);
	for (unsigned s = 0; s < nr; s++)
		if (section_state(f.phys, s) == SECTION_OFFLINE)
			assert_int_equal(section_online(f.phys, s), 0);
	assert_true(phys_is_valid(f.phys));
	assert_true(hoard_all(&f, &h, d, GFP_USER_MOVABLE, 0) > 1000);
	hoard_free(&f, &h);
	domain_put(d);
	assert_int_equal(phys_free_pages(f.phys), 16384);
	fixture_end(&f);
}

static void test_terabyte(void **state)
{
	uint64_t started = clock_now(), free_before;
	struct domain *d;
	struct hoard h = {0};

	(void)state;
	if (TEST_TSAN) {
		print_message(
			"skipped: ThreadSanitizer leaves room for a terabyte now and then only\n");
		skip();
	}
	fixture_init(&f, UINT64_C(1) << 40, 4, 8);
	assert_int_equal(phys_create(&f.config, &f.state, &f.phys), 0);
	assert_true(clock_now() - started < NSEC_PER_SEC);
	assert_true(phys_metadata_bytes(f.phys) < 64 * MIB);
	assert_int_equal(phys_free_pages(f.phys), UINT64_C(1) << 28);
	assert_true(phys_is_valid(f.phys));
	d = new_domain(&f, 1);
	for (unsigned cpu = 0; cpu < 8; cpu++) {
		struct alloc_result out;

		assert_int_equal(try_alloc(&f, d, GFP_USER_MOVABLE, 0, cpu, &out), 0);
		hoard_add(&h, out.pfn);
		assert_int_equal(pfn_zone(f.phys, out.pfn)->node, cpu / 2);
		/* more leaves than one section holds: the next one is initialised on demand */
		for (unsigned i = 0; i < 100; i++) {
			assert_int_equal(
				try_alloc(&f, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 9, cpu, &out), 0);
			assert_true(out.hole);
			hoard_add(&h, out.pfn);
		}
	}
	assert_true(phys_is_valid(f.phys));
	assert_true(phys_metadata_bytes(f.phys) < 64 * MIB);
	/* sections never touched go and come without being read */
	free_before = phys_free_pages(f.phys);
	assert_int_equal(section_offline(f.phys, 1000), 0);
	assert_int_equal(section_offline(f.phys, 2500), 0);
	assert_int_equal(phys_free_pages(f.phys), free_before - 2 * phys_section_pages(f.phys));
	assert_true(phys_is_valid(f.phys));
	assert_int_equal(section_online(f.phys, 1000), 0);
	assert_int_equal(phys_free_pages(f.phys), free_before - phys_section_pages(f.phys));
	hoard_free(&f, &h);
	domain_put(d);
	fixture_end(&f);
}

/* A section that was offline when its neighbours were initialised comes online later. */
static void test_deferred_hole(void **state)
{
	struct hoard h = {0};
	struct domain *d;
	struct alloc_result out;
	unsigned late;

	(void)state;
	fixture_init(&f, 4 * GIB, 1, 1);
	fixture_boot(&f);
	late = zone_at(&f, 0, ZONE_HIGHMEM)->deferred / phys_section_pages(f.phys);
	assert_int_equal(section_offline(f.phys, late), 0);
	d = new_domain(&f, 1);
	while (zone_at(&f, 0, ZONE_HIGHMEM)->deferred / phys_section_pages(f.phys) < late + 3) {
		assert_int_equal(try_alloc(&f, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 10, 0, &out), 0);
		assert_int_not_equal(out.pfn / phys_section_pages(f.phys), late);
		hoard_add(&h, out.pfn);
	}
	assert_true(phys_is_valid(f.phys));
	assert_int_equal(section_online(f.phys, late), 0);
	assert_true(phys_is_valid(f.phys));
	for (unsigned i = 0; i < 4000 && out.pfn / phys_section_pages(f.phys) != late; i++) {
		assert_int_equal(try_alloc(&f, d, GFP_USER_MOVABLE | GFP_HOLE_OK, 9, 0, &out), 0);
		hoard_add(&h, out.pfn);
	}
	assert_int_equal(out.pfn / phys_section_pages(f.phys), late);
	hoard_free(&f, &h);
	domain_put(d);
	fixture_end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout),   cmocka_unit_test(test_bad_layouts),
		cmocka_unit_test(test_reserved), cmocka_unit_test(test_offline),
		cmocka_unit_test(test_terabyte), cmocka_unit_test(test_deferred_hole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
