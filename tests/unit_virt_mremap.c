/* SPDX-License-Identifier: MIT */
/*
 * unit_virt_mremap.c - mremap and brk, one promise at a time. What they do in any order is
 * unit_virt_model's business, what a crash leaves of them unit_virt_recover_sweep's.
 */
#include "daemon/phys/journal.h"
#include "tests/virt_one.h"

/* ---- mremap -------------------------------------------------------------------------------- */

static void test_leaf_moves_whole(void **state)
{
	uint64_t at = client_map(c, LEAF(4), PROT_RW, MAP_ANON_PRIVATE), to = at - LEAF(16), out;
	pfn_t pfn[2];
	struct arena_flush_entry flush;

	(void)state;
	put(at, 1);
	put(at + LEAF(1) + PAGE(3), 2);
	pfn[0] = client_pfn(c, at);
	pfn[1] = client_pfn(c, at + LEAF(1));
	assert_int_equal(remap(at, LEAF(2), LEAF(2), MREMAP_MAYMOVE | MREMAP_FIXED, to, &out), 0);
	assert_int_equal(out, to);
	assert_true(client_is_leaf(c, to) && client_is_leaf(c, to + LEAF(1)));
	assert_int_equal(client_pfn(c, to), pfn[0]);
	assert_int_equal(client_pfn(c, to + LEAF(1)), pfn[1]);
	/* No count changed, nothing waits but the client's knowledge of the old place. */
	assert_int_equal(pfn_to_page(m.phys, pfn[0])->refcount, 1);
	assert_int_equal(pfn_to_page(m.phys, pfn[0])->mapcount, 1);
	assert_int_equal(c->mm->limbo.pages, 0);
	assert_int_equal(client_pfn(c, at), PFN_NONE);
	flush = c->ring[mm_flush_posted(c->mm) % ARENA_FLUSH_ENTRIES];
	assert_int_equal(flush.op, ARENA_FLUSH_UNMAP);
	assert_true(flush.start <= at && flush.end >= at + LEAF(2));
	client_ack_all(c);
	assert_true(client_tlb_is_current(c));
	assert_int_equal(get(to), 1);
	assert_int_equal(get(to + LEAF(1) + PAGE(3)), 2);
	assert_refused(c, at, PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(get(at + LEAF(2)), 0); /* what was not moved is there */
}

static void test_leaf_is_split_where_it_must(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE),
		 to = at - LEAF(8) + PAGE(5), out, i;
	pfn_t first;

	(void)state;
	for (i = 0; i < 512; i += 37)
		put(at + PAGE(i), i + 1);
	assert_true(client_is_leaf(c, at));
	first = client_pfn(c, at);
	assert_int_equal(remap(at, LEAF(1), LEAF(1), MREMAP_MAYMOVE | MREMAP_FIXED, to, &out), 0);
	assert_int_equal(client_pfn(c, to + PAGE(300)), first + 300);
	client_ack_all(c);
	for (i = 0; i < 512; i += 37)
		assert_int_equal(get(to + PAGE(i)), i + 1);
	/* And on: the frames know their place in the VMA, wherever it is. */
	assert_int_equal(remap(to, LEAF(1), PAGE(100), MREMAP_MAYMOVE | MREMAP_FIXED, at, &out), 0);
	client_ack_all(c);
	assert_int_equal(get(at + PAGE(74)), 75);
	assert_refused(c, at + PAGE(100), PROT_READ, SIGSEGV, SEGV_MAPERR);
}

static void test_mremap_in_place(void **state)
{
	uint64_t at = client_map(c, PAGE(10), PROT_RW, MAP_ANON_PRIVATE), out, wall;

	(void)state;
	put(at, 7);
	assert_int_equal(vm_munmap(c->mm, at + PAGE(5), PAGE(5)), 0);
	assert_int_equal(remap(at, PAGE(5), PAGE(8), 0, 0, &out), 0);
	assert_int_equal(out, at);
	assert_int_equal(count_vmas(c), 1);
	assert_int_equal(client_mmap(c, at + PAGE(9), PAGE(1), PROT_READ,
				     MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &wall),
			 0);
	assert_int_equal(remap(at, PAGE(8), PAGE(9), 0, 0, &out), 0);
	assert_int_equal(remap(at, PAGE(9), PAGE(10), 0, 0, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(remap(at, PAGE(9), PAGE(600), MREMAP_MAYMOVE, 0, &out), 0);
	assert_true(out != at && IS_ALIGNED(out, ARENA_LEAF_SIZE));
	client_ack_all(c);
	assert_int_equal(get(out), 7);
	assert_int_equal(get(out + PAGE(599)), 0);
	/* In the middle of a VMA there is no growing in place. */
	assert_int_equal(remap(out + PAGE(10), PAGE(2), PAGE(3), 0, 0, &wall), ARENA_E_NO_MEMORY);
}

/* Memory that was never touched merges with what it is moved to, as in Linux; but a source that lies
 * beside its destination must not become part of it. */
static void test_mremap_untouched(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE), out;
	uint32_t flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	(void)state;
	assert_int_equal(vm_munmap(c->mm, at + PAGE(10), PAGE(500)), 0);
	assert_int_equal(remap(at + PAGE(5), PAGE(5), PAGE(5), flags, at + PAGE(10), &out), 0);
	assert_refused(c, at + PAGE(9), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(count_vmas(c), 3);
	assert_int_equal(remap(at + PAGE(10), PAGE(5), PAGE(5), flags, at + PAGE(5), &out), 0);
	assert_refused(c, at + PAGE(10), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(get(at + PAGE(9)), 0);
	assert_int_equal(vm_munmap(c->mm, at, LEAF(1)), 0);
	at = client_map(c, PAGE(20), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(10)), 0);
	assert_int_equal(remap(at + PAGE(10), PAGE(5), PAGE(5), flags, at + PAGE(5), &out), 0);
	assert_refused(c, at + PAGE(10), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(20)), 0);
	client_ack_all(c);
	at = client_map(c, PAGE(10), PROT_RW, MAP_ANON_PRIVATE);
	out = client_map(c, PAGE(30), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_munmap(c->mm, out + PAGE(5), PAGE(10)), 0);
	assert_int_equal(remap(at, PAGE(10), PAGE(10), flags, out + PAGE(5), &out), 0);
	assert_int_equal(count_vmas(c), 1);
}

static void test_mremap_shared(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_SHARED), other, third;

	(void)state;
	put(at + PAGE(9), 5);
	assert_int_equal(remap(at + PAGE(8), 0, PAGE(4), MREMAP_MAYMOVE, 0, &other), 0);
	assert_int_equal(get(other + PAGE(1)), 5);
	put(other + PAGE(1), 6);
	assert_int_equal(get(at + PAGE(9)), 6);
	assert_int_equal(remap(at, LEAF(1), LEAF(1), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, &third),
			 0);
	client_ack_all(c);
	/* The object is the same at all three. */
	put(third + PAGE(9), 8);
	assert_int_equal(get(at + PAGE(9)), 8);
	assert_int_equal(get(other + PAGE(1)), 8);
	at = client_map(c, PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(remap(at, 0, PAGE(4), MREMAP_MAYMOVE, 0, &other), ARENA_E_INVALID);
	put(at, 3);
	assert_int_equal(remap(at, PAGE(4), PAGE(4), MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0, &other),
			 0);
	client_ack_all(c);
	assert_int_equal(get(other), 3);
	assert_int_equal(get(at), 0);
}

/* A worker died in the middle: the next finds its plan and finishes it. */
static void test_mremap_resumed(void **state)
{
	uint64_t at = map_small(PAGE(40)), to = at - LEAF(3), out = 0, i;
	uint32_t flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	struct vma *v;
	struct pte_ref from, ref;

	(void)state;
	for (i = 0; i < 40; i += 3)
		put(at + PAGE(i), i + 1);
	journal_begin(&m.state, 1, 0, 0, 1);
	assert_int_equal(remap(at, PAGE(30), PAGE(30), flags, to, &out), 0);
	assert_int_equal(m.state.journal->phase, JOURNAL_PREPARED);
	/* Before its last store: the source's VMA is still there, and one entry is at both places. */
	v = vma_find(c->mm, to);
	assert_int_equal(vma_insert(c->mm, &(struct vma_template){.start = at,
								  .end = at + PAGE(30),
								  .pgoff = v->pgoff,
								  .flags = v->flags,
								  .prot = v->prot}),
			 0);
	v = vma_find(c->mm, at);
	if (v->end > at + PAGE(30)) /* merged with what was left: cut as it was cut then */
		assert_int_equal(vma_split(v, at + PAGE(30)), 0);
	v = vma_find(c->mm, at);
	assert_true(pgtable_lookup(c->mm, to + PAGE(3), &from));
	get_page(m.phys, (pfn_t)arena_pte_pfn(*from.entry));
	assert_int_equal(pgtable_get(c->mm, at + PAGE(3), 0, &ref), 0);
	map_frame(v, &ref, (pfn_t)arena_pte_pfn(*from.entry), *from.entry);
	assert_true(virt_is_valid(m.virt));
	journal_set_resuming(&m.state);
	out = 0;
	assert_int_equal(remap(at, PAGE(30), PAGE(30), flags, to, &out), 0);
	assert_int_equal(out, to);
	client_ack_all(c);
	assert_true(virt_is_valid(m.virt));
	assert_refused(c, at + PAGE(3), PROT_READ, SIGSEGV, SEGV_MAPERR);
	for (i = 0; i < 40; i += 3)
		assert_int_equal(get((i < 30 ? to : at) + PAGE(i)), i + 1);
	/* After its last store: nothing is left to do, and nothing is done. */
	journal_set_resuming(&m.state);
	assert_int_equal(remap(at, PAGE(30), PAGE(30), flags, to, &out), 0);
	assert_int_equal(get(to + PAGE(3)), 4);
	journal_clear(&m.state);
}

/* ---- brk ----------------------------------------------------------------------------------- */

static void test_brk(void **state)
{
	uint64_t start = c->mm->header->start_brk, out;
	struct vma_info info;

	(void)state;
	assert_int_equal(vm_brk(c->mm, 0, 0, &out), 0);
	assert_int_equal(out, start);
	assert_int_equal(vm_brk(c->mm, 0, 5000, &out), 0);
	assert_int_equal(out, start);
	put(start + 4096, 9);
	assert_int_equal(vm_brk(c->mm, start + LEAF(2) + 1, 0, &out), 0);
	assert_int_equal(count_vmas(c), 1);
	assert_true(mm_next_vma(c->mm, start, &info));
	assert_string_equal(info.name, "[heap]");
	assert_int_equal(get(start + 4096), 9);
	assert_int_equal(vm_brk(c->mm, 0, -(int64_t)LEAF(2), &out), 0);
	assert_int_equal(c->mm->header->brk, start + 1);
	client_ack_all(c);
	assert_refused(c, start + PAGE(1), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(vm_brk(c->mm, start - 1, 0, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, 0, -2, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, 0, INT64_MIN, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, 0, INT64_MAX, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, c->mm->header->brk_limit + 1, 0, &out), ARENA_E_NO_MEMORY);
	test_limit[VM_LIMIT_DATA] = PAGE(10);
	assert_int_equal(vm_brk(c->mm, start + PAGE(10) + 1, 0, &out), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_brk(c->mm, start + PAGE(10), 0, &out), 0);
	/* mmap of data counts against the same limit; what is no data does not. */
	assert_int_equal(client_mmap(c, 0, PAGE(1), PROT_RW, MAP_ANON_PRIVATE, 0, 0, &out),
			 ARENA_E_NO_MEMORY);
	client_map(c, PAGE(1), PROT_READ, MAP_ANON_PRIVATE);
	client_map(c, PAGE(1), PROT_RW, MAP_ANON_SHARED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_leaf_moves_whole),
		TEST(test_leaf_is_split_where_it_must),
		TEST(test_mremap_in_place),
		TEST(test_mremap_untouched),
		TEST(test_mremap_shared),
		TEST(test_mremap_resumed),
		TEST(test_brk),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
