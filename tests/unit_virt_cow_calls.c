/* SPDX-License-Identifier: MIT */
/*
 * Copy on write and the other calls: pins, mlock, mremap, madvise, mincore and overcommit over memory that
 * is shared after fork or snapshot, and what a child inherits.
 */
#include <fcntl.h>

#include "tests/virt_one.h"

static uint64_t get_of(struct fake_client *who, uint64_t addr)
{
	uint64_t value;

	memcpy(&value, client_read(who, addr), sizeof(value));
	return value;
}

static void put_of(struct fake_client *who, uint64_t addr, uint64_t value)
{
	memcpy(client_write(who, addr), &value, sizeof(value));
}

static uint64_t map_filled(uint64_t len)
{
	uint64_t at = client_map(c, len, PROT_RW, MAP_ANON_PRIVATE), i;

	for (i = 0; i < len; i += ARENA_PAGE_SIZE)
		put(at + i, i + 1);
	return at;
}

static int pin(struct fake_client *who, uint64_t at, uint64_t len, bool write)
{
	uint64_t next = at, end = at + len;
	int r = 0;

	while (!r && at < end) {
		r = vm_pin(who->mm, at, end - at, write, 0, &next);
		if (r == ARENA_E_AGAIN) {
			client_ack(who, mm_flush_posted(who->mm));
			r = 0;
			continue;
		}
		at = next;
	}
	return r;
}

static uint64_t mlocked(void)
{
	uint64_t sum = 0;
	unsigned z;

	for (z = 0; z < NR_ZONE_TYPES; z++)
		sum += phys_node(m.phys, 0)->zone[z].stat[NR_MLOCK];
	return sum;
}

/* ---- pins ---- */

/* Whatever is written afterwards, the pinner's frame is where the pinner's page is. */
static void pinned_stays(uint64_t len, uint64_t at_page)
{
	uint64_t at = map_filled(len), copy, word;
	uint64_t page = at + PAGE(at_page);
	pfn_t pfn;
	struct fake_client *child;

	assert_int_equal(pin(c, page, PAGE(1), true), 0);
	pfn = client_pfn(c, page);
	child = client_fork(c, 2);
	assert_int_not_equal(client_pfn(child, page), pfn);
	assert_int_equal(vm_snapshot(c->mm, at, len, &copy), 0);
	assert_true(virt_is_valid(m.virt));
	/* Not even the right to write was taken. */
	memcpy(&word, domain_address(mm_domain(c->mm), pfn), sizeof(word));
	assert_int_equal(word, PAGE(at_page) + 1);
	word = 77;
	memcpy(domain_address(mm_domain(c->mm), pfn), &word, sizeof(word));
	assert_int_equal(get(page), 77);
	assert_int_equal(get_of(child, page), PAGE(at_page) + 1);
	assert_int_equal(get(copy + PAGE(at_page)), PAGE(at_page) + 1);
	put(page, 78);
	put_of(child, page, 79);
	assert_int_equal(client_pfn(c, page), pfn);
	assert_int_equal(vm_mprotect(c->mm, page, PAGE(1), PROT_NONE), 0);
	assert_int_equal(vm_mprotect(c->mm, page, PAGE(1), PROT_RW), 0);
	put(page, 80);
	assert_int_equal(client_pfn(c, page), pfn);
	client_down(child);
	assert_int_equal(vm_unpin(c->mm, page, PAGE(1)), 0);
	assert_int_equal(get(page), 80);
}

static void test_pinned_page_stays(void **state)
{
	(void)state;
	pinned_stays(PAGE(20), 5);
}

static void test_pinned_leaf_stays(void **state)
{
	(void)state;
	pinned_stays(LEAF(2), 600);
}

/* What is shared is not what is pinned, though it is only to be read. */
static void test_pin_shared(void **state)
{
	uint64_t at = map_filled(LEAF(1)), next = at;
	struct fake_client *child = client_fork(c, 2);
	pfn_t pfn;

	(void)state;
	/* The flush that took the parent's right is not acknowledged. */
	assert_int_equal(vm_pin(c->mm, at + PAGE(3), PAGE(2), false, 0, &next), ARENA_E_AGAIN);
	assert_int_equal(pin(c, at + PAGE(3), PAGE(2), false), 0);
	assert_int_equal(pin(child, at + PAGE(3), PAGE(2), false), 0);
	pfn = client_pfn(child, at + PAGE(3));
	assert_int_not_equal(pfn, client_pfn(c, at + PAGE(3)));
	assert_true(virt_is_valid(m.virt));
	put_of(child, at + PAGE(3), 5);
	assert_int_equal(client_pfn(child, at + PAGE(3)), pfn);
	put(at + PAGE(4), 6);
	assert_int_equal(get_of(child, at + PAGE(4)), PAGE(4) + 1);
	client_down(child);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(3), PAGE(2)), 0);
}

/* A private mapping of a segment: the pin is of a copy. */
static void test_pin_private_segment(void **state)
{
	struct segment_open open;
	uint64_t shared, private;
	pfn_t pfn;

	(void)state;
	assert_int_equal(client_open(c, "s", O_RDWR | O_CREAT, 0600, &open), 0);
	assert_int_equal(mm_truncate_segment(c->mm, open.handle, LEAF(1), NULL), 0);
	shared = client_map_segment(c, open.handle, LEAF(1), PROT_RW, MAP_SHARED, 0);
	put(shared + PAGE(2), 9);
	private = client_map_segment(c, open.handle, LEAF(1), PROT_READ, MAP_PRIVATE, 0);
	assert_int_equal(get(private + PAGE(2)), 9);
	assert_int_equal(pin(c, private + PAGE(2), PAGE(1), false), 0);
	pfn = client_pfn(c, private + PAGE(2));
	assert_int_not_equal(pfn, client_pfn(c, shared + PAGE(2)));
	assert_int_equal(vm_mprotect(c->mm, private, LEAF(1), PROT_RW), 0);
	put(private + PAGE(2), 10);
	assert_int_equal(client_pfn(c, private + PAGE(2)), pfn);
	assert_int_equal(get(shared + PAGE(2)), 9);
	assert_int_equal(segment_unlink(m.virt, &c->cred, "s"), 0);
}

/* ---- mremap ---- */

static void check_moved(uint64_t delta)
{
	uint64_t at = map_filled(LEAF(2)), to = at - LEAF(8) + delta, out, i;
	struct fake_client *child = client_fork(c, 2);

	client_ack_all(c);
	/* A copy of the first leaf is under way. */
	put_of(child, at + PAGE(100), 5);
	assert_int_equal(vm_mremap(child->mm,
				   &(struct vm_mremap_args){.old = at,
							    .old_len = LEAF(2),
							    .new_len = LEAF(2),
							    .new_addr = to,
							    .flags = MREMAP_MAYMOVE | MREMAP_FIXED},
				   &out),
			 0);
	assert_int_equal(child->mm->nr_cow_jobs, 0);
	client_ack_all(child);
	assert_true(virt_is_valid(m.virt));
	put_of(child, to + PAGE(101), 6);
	put(at + PAGE(102), 7);
	for (i = 0; i < LEAF(2); i += ARENA_PAGE_SIZE) {
		uint64_t n = i >> ARENA_PAGE_SHIFT;

		assert_int_equal(get_of(child, to + i), n == 100 ? 5 : n == 101 ? 6 : i + 1);
		assert_int_equal(get(at + i), n == 102 ? 7 : i + 1);
	}
	for (i = 0; i < LEAF(2); i += ARENA_PAGE_SIZE)
		put_of(child, to + i, i + 9);
	assert_int_equal(get(at + PAGE(700)), PAGE(700) + 1);
	assert_true(virt_is_valid(m.virt));
	client_down(child);
}

static void test_move_shared(void **state)
{
	(void)state;
	check_moved(0);
	check_moved(PAGE(3));
}

/* ---- madvise, mincore ---- */

static void test_dontneed_shared(void **state)
{
	uint64_t at = map_filled(LEAF(1)), i;
	struct fake_client *child = client_fork(c, 2);

	(void)state;
	client_ack_all(c);
	put_of(child, at + PAGE(20), 5); /* a copy is under way */
	assert_int_equal(vm_madvise(child->mm, at + PAGE(18), PAGE(40), MADV_DONTNEED, NULL), 0);
	client_ack_all(child);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < ARENA_LEAF_PAGES; i++) {
		assert_int_equal(get_of(child, at + PAGE(i)), i >= 18 && i < 58 ? 0 : PAGE(i) + 1);
		assert_int_equal(get(at + PAGE(i)), PAGE(i) + 1);
	}
	assert_int_equal(vm_madvise(child->mm, at, LEAF(1), MADV_FREE, NULL), 0);
	put_of(child, at + PAGE(60), 1);
	assert_int_equal(get(at + PAGE(60)), PAGE(60) + 1);
	client_down(child);
}

static void collapse(struct fake_client *who, uint64_t at)
{
	int r = ARENA_E_AGAIN, i;

	for (i = 0; i < 4 && r == ARENA_E_AGAIN; i++) {
		r = vm_madvise(who->mm, at, LEAF(1), MADV_COLLAPSE, NULL);
		client_ack_all(who);
	}
	assert_int_equal(r, 0);
	assert_true(client_is_leaf(who, at));
}

/* Half of it shared, half copied; whoever shares it keeps what he had. */
static void test_collapse_shared(void **state)
{
	uint64_t at = map_filled(LEAF(1)), i;
	struct fake_client *child = client_fork(c, 2);

	(void)state;
	client_ack_all(c);
	put_of(child, at + PAGE(20), 5);
	collapse(child, at);
	assert_int_equal(child->mm->nr_cow_jobs, 0);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < ARENA_LEAF_PAGES; i++) {
		assert_int_equal(get_of(child, at + PAGE(i)), i == 20 ? 5 : PAGE(i) + 1);
		put_of(child, at + PAGE(i), i);
		assert_int_equal(get(at + PAGE(i)), PAGE(i) + 1);
	}
	/* And the family is still one: the next generation shares the new leaf. */
	client_down(client_fork(child, 3));
	client_down(child);
}

static void test_mincore_shared(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE), next, copy;
	uint8_t bits[ARENA_LEAF_PAGES / 8];
	struct fake_client *child;

	(void)state;
	assert_int_equal(vm_madvise(c->mm, at, LEAF(1), MADV_NOHUGEPAGE, NULL), 0);
	put(at + PAGE(3), 1);
	child = client_fork(c, 2);
	assert_int_equal(vm_snapshot(c->mm, at, LEAF(1), &copy), 0);
	memset(bits, 0, sizeof(bits));
	assert_int_equal(vm_mincore(child->mm, at, LEAF(1), bits, ARENA_LEAF_PAGES, &next), 0);
	assert_int_equal(bits[0] & 1u << 3, 1u << 3);
	assert_int_equal(bits[ARENA_LEAF_PAGES / 8 - 1], 0);
	memset(bits, 0, sizeof(bits));
	assert_int_equal(vm_mincore(c->mm, copy, LEAF(1), bits, ARENA_LEAF_PAGES, &next), 0);
	assert_int_equal(bits[0] & 1u << 3, 1u << 3);
	client_down(child);
}

/* ---- what a child inherits ---- */

static void test_fork_advice(void **state)
{
	uint64_t at = map_filled(PAGE(30)), i;
	struct fake_client *child, *grandchild;

	(void)state;
	assert_int_equal(vm_madvise(c->mm, at, PAGE(5), MADV_DONTFORK, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(5), PAGE(5), MADV_WIPEONFORK, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(10), PAGE(5), MADV_DONTFORK, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(10), PAGE(5), MADV_DOFORK, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(15), PAGE(5), MADV_WIPEONFORK, NULL), 0);
	assert_int_equal(vm_madvise(c->mm, at + PAGE(15), PAGE(5), MADV_KEEPONFORK, NULL), 0);
	child = client_fork(c, 2);
	for (i = 0; i < 30; i++) {
		if (i < 5)
			assert_refused(child, at + PAGE(i), PROT_READ, SIGSEGV, SEGV_MAPERR);
		else
			assert_int_equal(get_of(child, at + PAGE(i)), i < 10 ? 0 : PAGE(i) + 1);
		assert_int_equal(get(at + PAGE(i)), PAGE(i) + 1);
	}
	/* It stays so for the child's own child. */
	put_of(child, at + PAGE(7), 3);
	grandchild = client_fork(child, 3);
	assert_int_equal(get_of(grandchild, at + PAGE(7)), 0);
	assert_int_equal(get_of(child, at + PAGE(7)), 3);
	client_down(grandchild);
	client_down(child);
}

static void test_fork_locks(void **state)
{
	uint64_t at = map_filled(LEAF(1)), i;
	struct fake_client *child;
	struct mm_stats stats;

	(void)state;
	assert_int_equal(vm_mlock(c->mm, at, LEAF(1), false), 0);
	assert_int_equal(vm_mlockall(c->mm, MCL_FUTURE), 0);
	assert_int_equal(mlocked(), ARENA_LEAF_PAGES);
	child = client_fork(c, 2);
	mm_get_stats(child->mm, &stats);
	assert_int_equal(stats.locked_vm, 0);
	/* Nor is what it maps from now on. */
	client_map(child, PAGE(4), PROT_RW, MAP_ANON_PRIVATE);
	mm_get_stats(child->mm, &stats);
	assert_int_equal(stats.locked_vm, 0);
	assert_int_equal(mlocked(), ARENA_LEAF_PAGES);
	client_ack_all(c);
	put_of(child, at + PAGE(3), 1);
	assert_int_equal(mlocked(), ARENA_LEAF_PAGES);
	/* The frames that the locked mapping leaves are locked no more, those it comes to are. */
	put(at + PAGE(200), 2);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < ARENA_LEAF_PAGES; i++) {
		put(at + PAGE(i), 2);
		client_ack_all(c);
	}
	assert_true(client_is_leaf(c, at));
	assert_int_equal(mlocked(), ARENA_LEAF_PAGES);
	assert_true(virt_is_valid(m.virt));
	client_down(child);
	assert_int_equal(vm_munlock(c->mm, at, LEAF(1)), 0);
	assert_int_equal(mlocked(), 0);
	assert_int_equal(vm_munlockall(c->mm), 0);
	/* Locked by both: one's lock is not the other's. */
	assert_int_equal(vm_mlock(c->mm, at, PAGE(1), false), 0);
	child = client_fork(c, 3);
	assert_int_equal(vm_mlock(child->mm, at, PAGE(1), false), 0);
	assert_int_equal(vm_munlock(c->mm, at, PAGE(1)), 0);
	assert_true(mlocked() > 0);
	client_down(child);
	client_ack_all(c);
	assert_int_equal(mlocked(), 0);
}

static void test_fork_heap(void **state)
{
	uint64_t start, end, out;
	struct fake_client *child;
	struct mm_stats parent, mine;

	(void)state;
	assert_int_equal(vm_brk(c->mm, 0, (int64_t)PAGE(10), &start), 0);
	put(start + PAGE(2), 5);
	client_map(c, PAGE(3), PROT_READ | PROT_EXEC, MAP_ANON_PRIVATE);
	client_map(c, PAGE(5), PROT_RW, MAP_ANON_PRIVATE | MAP_GROWSDOWN);
	client_map(c, PAGE(7), PROT_RW, MAP_ANON_SHARED);
	child = client_fork(c, 2);
	mm_get_stats(c->mm, &parent);
	mm_get_stats(child->mm, &mine);
	assert_int_equal(mine.total_vm, parent.total_vm);
	assert_int_equal(mine.data_vm, parent.data_vm);
	assert_int_equal(mine.exec_vm, parent.exec_vm);
	assert_int_equal(mine.stack_vm, parent.stack_vm);
	assert_int_equal(mine.brk, parent.brk);
	assert_int_equal(mine.start_brk, parent.start_brk);
	assert_int_equal(mine.pinned_vm, 0);
	assert_int_equal(vm_brk(child->mm, 0, 0, &end), 0);
	assert_int_equal(end, start + PAGE(10));
	assert_int_equal(get_of(child, start + PAGE(2)), 5);
	assert_int_equal(vm_brk(child->mm, 0, (int64_t)PAGE(4), &out), 0);
	put_of(child, start + PAGE(11), 6);
	assert_int_equal(vm_brk(child->mm, 0, -(int64_t)PAGE(13), &out), 0);
	assert_refused(child, start + PAGE(2), PROT_READ, SIGSEGV, SEGV_MAPERR);
	assert_int_equal(get(start + PAGE(2)), 5);
	assert_int_equal(vm_brk(c->mm, 0, 0, &end), 0);
	assert_int_equal(end, start + PAGE(10));
	client_down(child);
}

static void test_fork_commits(void **state)
{
	uint64_t total = phys_total_pages(m.phys), at, copy, before;
	struct fake_client *child = NULL;

	(void)state;
	m.state.tunables[TUNABLE_OVERCOMMIT_MEMORY] = 2;
	m.state.tunables[TUNABLE_OVERCOMMIT_RATIO] = 100;
	m.state.tunables[TUNABLE_ADMIN_RESERVE_KBYTES] = 0;
	m.state.tunables[TUNABLE_USER_RESERVE_KBYTES] = 0;
	at = client_map(c, PAGE(total / 3), PROT_RW, MAP_ANON_PRIVATE);
	before = virt_committed_pages(m.virt);
	assert_int_equal(before, total / 3);
	assert_int_equal(client_try_fork(c, 2, &child), 0);
	assert_int_equal(virt_committed_pages(m.virt), 2 * before);
	/* Neither a third one, nor a snapshot. */
	assert_int_equal(vm_mmap(c->mm,
				 &(struct vm_mmap_args){.len = PAGE(total / 6),
							.prot = PROT_RW,
							.flags = MAP_ANON_PRIVATE},
				 &copy),
			 0);
	assert_int_equal(client_try_fork(c, 3, &(struct fake_client *){NULL}), ARENA_E_NO_MEMORY);
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(total / 3), &copy), ARENA_E_NO_MEMORY);
	assert_true(virt_is_valid(m.virt));
	/* What is not to be copied is not to be promised. */
	assert_int_equal(vm_madvise(c->mm, at, PAGE(total / 3), MADV_DONTFORK, NULL), 0);
	client_down(child);
	child = client_fork(c, 4);
	client_down(child);
	assert_int_equal(virt_committed_pages(m.virt), before + total / 6);
}

static void test_snapshot_limits(void **state)
{
	uint64_t at = map_filled(PAGE(8)), copy;

	(void)state;
	test_limit[VM_LIMIT_DATA] = PAGE(12);
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(8), &copy), ARENA_E_NO_MEMORY);
	test_limit[VM_LIMIT_DATA] = PAGE(16);
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(8), &copy), 0);
	test_limit[VM_LIMIT_DATA] = UINT64_MAX;
	m.state.tunables[TUNABLE_MAX_MAP_COUNT] = c->mm->nr_vmas;
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(8), &copy), ARENA_E_NO_MEMORY);
	m.state.tunables[TUNABLE_MAX_MAP_COUNT] = 65530;
	/* Not locked, though what it is a copy of is. */
	assert_int_equal(vm_mlock(c->mm, at, PAGE(8), false), 0);
	assert_int_equal(vm_snapshot(c->mm, at, PAGE(8), &copy), 0);
	assert_int_equal(c->mm->locked_vm, 8);
	assert_true(virt_is_valid(m.virt));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_pinned_page_stays), TEST(test_pinned_leaf_stays),
		TEST(test_pin_shared),        TEST(test_pin_private_segment),
		TEST(test_move_shared),       TEST(test_dontneed_shared),
		TEST(test_collapse_shared),   TEST(test_mincore_shared),
		TEST(test_fork_advice),       TEST(test_fork_locks),
		TEST(test_fork_heap),         TEST(test_fork_commits),
		TEST(test_snapshot_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
