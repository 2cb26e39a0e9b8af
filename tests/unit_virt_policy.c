/* SPDX-License-Identifier: MIT */
/*
 * unit_virt_policy.c - whatever gets a frame for an address space gets it from where its policy says: faults of all
 * kinds, leaves and single frames, copies of leaves and of pages, collapse, frames by number; in a child, too.
 */
#include <fcntl.h>
#include <linux/mempolicy.h>

#include "tests/virt_fake.h"

#define NODES 3u

static struct fake_machine m;
static struct fake_client *c;

static int setup(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(test_limit); i++)
		test_limit[i] = UINT64_MAX;
	machine_up(&m, UINT64_C(384) << 20, NODES);
	c = client_up(&m, 1000, 1);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_true(virt_is_valid(m.virt));
	c = client_down(c);
	machine_down(&m);
	return 0;
}

static uint64_t free_on(unsigned node)
{
	uint64_t n = 0;

	for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
		n += phys_node(m.phys, node)->zone[t].nr_free;
	return n;
}

static unsigned node_of(struct fake_client *of, uint64_t addr)
{
	struct pte_ref ref;

	assert_true(pgtable_lookup(of->mm, addr, &ref) && *ref.entry & ARENA_PTE_PRESENT);
	return pfn_zone(m.phys, (pfn_t)arena_pte_pfn(*ref.entry))->node;
}

static void put(struct fake_client *of, uint64_t addr, uint64_t word)
{
	memcpy(client_write(of, addr), &word, sizeof(word));
}

static void bind_to(struct fake_client *of, uint64_t nodes)
{
	assert_int_equal(vm_set_mempolicy(of->mm, MPOL_BIND, nodes), 0);
}

/* Everything that allocates, all of it on one node. */
static void use_memory(struct fake_client *of, unsigned node)
{
	uint64_t leaves = client_map(of, LEAF(4), PROT_RW, MAP_ANON_PRIVATE);
	uint64_t pages = client_map(of, LEAF(1) + PAGE(20), PROT_RW, MAP_ANON_PRIVATE);
	uint64_t shared = client_map(of, LEAF(2), PROT_RW, MAP_ANON_SHARED), copy, at, pfn;

	assert_int_equal(vm_madvise(of->mm, pages, LEAF(1) + PAGE(20), MADV_NOHUGEPAGE, NULL), 0);
	for (unsigned i = 0; i < 4; i++) {
		put(of, leaves + LEAF(i) + PAGE(3), i);
		assert_int_equal(node_of(of, leaves + LEAF(i)), node);
	}
	for (unsigned i = 0; i < ARENA_LEAF_PAGES + 20; i++) {
		put(of, pages + PAGE(i), i);
		assert_int_equal(node_of(of, pages + PAGE(i)), node);
	}
	put(of, shared, 1);
	assert_int_equal(node_of(of, shared), node);
	assert_int_equal(vm_snapshot(of->mm, leaves, LEAF(4), &copy), 0);
	client_ack_all(of);
	for (unsigned i = 0; i < ARENA_LEAF_PAGES; i += 5) {
		put(of, leaves + PAGE(i), 9);
		put(of, copy + LEAF(1) + PAGE(i), 8);
		assert_int_equal(node_of(of, leaves + PAGE(i)), node);
		assert_int_equal(node_of(of, copy + LEAF(1) + PAGE(i)), node);
	}
	assert_int_equal(vm_alloc_pages(of->mm, ARENA_GFP_KERNEL, 2, 0, &at, &pfn), 0);
	assert_int_equal(pfn_zone(m.phys, (pfn_t)pfn)->node, node);
	assert_int_equal(vm_free_pages(of->mm, at, 2), 0);
}

/* Copies of single pages: after a snapshot, of a segment's in a private mapping, of pinned ones, by gather and
 * collapse. */
static void use_copies(struct fake_client *of, unsigned node)
{
	uint64_t pages = client_map(of, LEAF(2), PROT_RW, MAP_ANON_PRIVATE), copy, segment, next;
	uint64_t base = ALIGN_UP(pages, ARENA_LEAF_SIZE);
	struct segment_open open;
	pfn_t moved;
	int r;

	assert_int_equal(vm_madvise(of->mm, pages, LEAF(2), MADV_NOHUGEPAGE, NULL), 0);
	put(of, base, 1);
	put(of, base + PAGE(100), 1);
	assert_int_equal(vm_snapshot(of->mm, base, LEAF(1), &copy), 0);
	client_ack_all(of);
	put(of, copy, 2);
	put(of, base + PAGE(100), 2);
	assert_int_equal(node_of(of, copy), node);
	assert_int_equal(node_of(of, base + PAGE(100)), node);
	assert_int_equal(vm_munmap(of->mm, copy, LEAF(1)), 0);

	assert_int_equal(vm_pin(of->mm, base, PAGE(1), true, 0, &next), 0);
	assert_int_equal(vm_snapshot(of->mm, base, PAGE(1), &copy), 0);
	assert_int_equal(node_of(of, copy), node);
	assert_int_equal(vm_unpin(of->mm, base, PAGE(1)), 0);
	client_ack_all(of);

	assert_int_equal(client_open(of, "segment", O_CREAT | O_RDWR, 0600, &open), 0);
	assert_int_equal(mm_truncate_segment(of->mm, open.handle, PAGE(4), NULL), 0);
	segment = client_map_segment(of, open.handle, PAGE(4), PROT_RW, MAP_PRIVATE, 0);
	client_read(of, segment);
	put(of, segment, 1);
	assert_int_equal(node_of(of, segment), node);
	assert_int_equal(mm_close_segment(of->mm, open.handle), 0);
	assert_int_equal(segment_unlink(m.virt, &of->cred, "segment"), 0);

	/* Downwards, so that no neighbours lie together. */
	for (unsigned i = 203; i-- > 200;)
		put(of, base + PAGE(i), 1);
	moved = client_pfn(of, base + PAGE(201));
	while ((r = vm_madvise(of->mm, base + PAGE(200), PAGE(3), ARENA_MADV_GATHER, NULL)) ==
	       ARENA_E_AGAIN)
		client_ack_all(of);
	assert_int_equal(r, 0);
	assert_int_not_equal(client_pfn(of, base + PAGE(201)), moved);
	assert_int_equal(node_of(of, base + PAGE(201)), node);
	client_ack_all(of);

	assert_int_equal(vm_madvise(of->mm, pages, LEAF(2), MADV_HUGEPAGE, NULL), 0);
	while ((r = vm_madvise(of->mm, base, LEAF(1), MADV_COLLAPSE, NULL)) == ARENA_E_AGAIN)
		client_ack_all(of);
	assert_int_equal(r, 0);
	assert_int_equal(node_of(of, base), node);
}

static void test_bind(void **state)
{
	uint64_t before[NODES];

	(void)state;
	for (unsigned node = 0; node < NODES; node++) {
		client_ack_all(c); /* what comes back late comes back now */
		for (unsigned n = 0; n < NODES; n++)
			before[n] = free_on(n);
		bind_to(c, UINT64_C(1) << node);
		use_memory(c, node);
		use_copies(c, node);
		for (unsigned n = 0; n < NODES; n++)
			assert_int_equal(free_on(n) == before[n], n != node);
	}
	/* THISNODE is the CPU's, and stronger. */
	{
		uint64_t at, pfn;

		bind_to(c, 1 << 2);
		assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_THISNODE, 0, 0, &at, &pfn), 0);
		assert_int_equal(pfn_zone(m.phys, (pfn_t)pfn)->node, 0);
		assert_int_equal(vm_free_pages(c->mm, at, 0), 0);
	}
}

/* A child's is its parent's, until one of them changes its own. */
static void test_fork(void **state)
{
	struct fake_client *child;
	uint64_t at = client_map(c, LEAF(2), PROT_RW, MAP_ANON_PRIVATE);

	(void)state;
	put(c, at, 1);
	bind_to(c, 1 << 2);
	child = client_fork(c, 2);
	client_ack_all(c);
	use_memory(child, 2);
	put(child, at, 2);
	assert_int_equal(node_of(child, at), 2);
	bind_to(child, 1 << 1);
	use_memory(child, 1);
	use_memory(c, 2);
	client_down(child);
}

static void test_full(void **state)
{
	uint64_t at = client_map(c, LEAF(70), PROT_RW, MAP_ANON_PRIVATE), next = at;
	uint64_t before = free_on(0) + free_on(2);

	(void)state;
	bind_to(c, 1 << 1);
	while (vm_populate(c->mm, next, at + LEAF(70) - next, POPULATE_WRITE, 0, &next) == 0)
		assert_true(next < at + LEAF(70));
	assert_true(next > at + LEAF(40));
	assert_int_equal(free_on(0) + free_on(2), before);
	/* The rest comes from others where that is all right. */
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_PREFERRED, 1 << 1), 0);
	while (next < at + LEAF(70))
		assert_int_equal(
			vm_populate(c->mm, next, at + LEAF(70) - next, POPULATE_WRITE, 0, &next),
			0);
	assert_true(free_on(0) + free_on(2) < before);
}

static void test_preferred(void **state)
{
	uint64_t at = client_map(c, LEAF(3), PROT_RW, MAP_ANON_PRIVATE);

	(void)state;
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_PREFERRED, 6), 0);
	put(c, at, 1);
	assert_int_equal(node_of(c, at), 1);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_PREFERRED, 0), 0);
	put(c, at + LEAF(1), 1);
	assert_int_equal(node_of(c, at + LEAF(1)), 0);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_DEFAULT, 0), 0);
	put(c, at + LEAF(2), 1);
	assert_int_equal(node_of(c, at + LEAF(2)), 0);
}

static void test_refused(void **state)
{
	(void)state;
	bind_to(c, 1 << 1);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_BIND, 0), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_BIND, 1 << NODES), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_BIND, UINT64_MAX), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_DEFAULT, 1), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_LOCAL, 1), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, MPOL_INTERLEAVE, 1), ARENA_E_INVALID);
	assert_int_equal(vm_set_mempolicy(c->mm, UINT32_MAX, 1), ARENA_E_INVALID);
	use_memory(c, 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_bind),      TEST(test_fork),    TEST(test_full),
		TEST(test_preferred), TEST(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
