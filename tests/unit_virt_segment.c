/* SPDX-License-Identifier: MIT */
/*
 * Segments and shared memory: names, permissions, slots, handles, leaves of objects, truncation,
 * private copies, common addresses.
 */
#include <fcntl.h>

#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *a, *b; /* of one uid */

static int up(void **state)
{
	(void)state;
	machine_up(&m, UINT64_C(128) << 20, 1);
	a = client_up(&m, 1000, 1);
	b = client_up(&m, 1000, 2);
	return 0;
}

static int down(void **state)
{
	(void)state;
	assert_true(client_check_tlb(a) && client_check_tlb(b));
	a = client_down(a);
	b = client_down(b);
	machine_down(&m);
	return 0;
}

static uint32_t open_ok(struct fake_client *c, const char *name, int oflag, uint32_t mode)
{
	struct segment_open open;

	assert_int_equal(client_open(c, name, oflag, mode, &open), 0);
	return open.handle;
}

static uint32_t create(struct fake_client *c, const char *name, uint32_t mode, uint64_t size)
{
	uint32_t h = open_ok(c, name, O_RDWR | O_CREAT, mode);

	assert_int_equal(mm_truncate_segment(c->mm, h, (int64_t)size, NULL), 0);
	return h;
}

static int open_result(struct fake_client *c, const char *name, int oflag)
{
	struct segment_open open;
	int r = client_open(c, name, oflag, 0600, &open);

	if (!r)
		assert_int_equal(mm_close_segment(c->mm, open.handle), 0);
	return r;
}

static void test_names(void **state)
{
	struct segment_info info;
	uint32_t h;
	int64_t size;

	(void)state;
	assert_int_equal(open_result(a, "x", O_RDWR), ARENA_E_NOT_FOUND);
	assert_int_equal(segment_unlink(m.virt, &a->cred, "x"), ARENA_E_NOT_FOUND);
	h = create(a, "x", 0600, 5000);
	assert_int_equal(open_result(b, "x", O_RDWR | O_CREAT | O_EXCL), ARENA_E_EXISTS);
	assert_int_equal(open_result(b, "x", O_WRONLY), ARENA_E_INVALID);
	assert_int_equal(mm_stat_segment(a->mm, h, &size), 0);
	assert_int_equal(size, 5000);
	assert_int_equal(mm_stat_segment(a->mm, 0, &size), ARENA_E_INVALID);
	assert_int_equal(mm_stat_segment(a->mm, UINT32_MAX, &size), ARENA_E_INVALID);
	assert_int_equal(mm_stat_segment(a->mm, h + 1, &size), ARENA_E_INVALID);
	assert_int_equal(mm_truncate_segment(a->mm, h, -1, NULL), ARENA_E_INVALID);
	assert_int_equal(mm_truncate_segment(a->mm, h, INT64_MAX, NULL), ARENA_E_TOO_BIG);
	assert_true(segment_next(m.virt, 0, &info));
	assert_string_equal(info.name, "x");
	assert_int_equal(info.nr_handles, 1);
	assert_false(segment_next(m.virt, info.id, &info));
	/* Closed and unmapped, the name keeps it; unlinked, the name is free again at once. */
	assert_int_equal(mm_close_segment(a->mm, h), 0);
	assert_int_equal(mm_close_segment(a->mm, h), ARENA_E_INVALID);
	h = open_ok(a, "x", O_RDONLY, 0);
	assert_int_equal(mm_truncate_segment(a->mm, h, 1, NULL), ARENA_E_INVALID);
	assert_int_equal(segment_unlink(m.virt, &a->cred, "x"), 0);
	assert_int_equal(open_result(a, "x", O_RDWR), ARENA_E_NOT_FOUND);
	assert_int_equal(mm_stat_segment(a->mm, h, &size), 0);
	assert_int_equal(size, 5000);
	create(b, "x", 0600, 1);
	assert_true(segment_next(m.virt, 0, &info) && info.unlinked);
	assert_true(segment_next(m.virt, info.id, &info) && !info.unlinked);
	assert_true(virt_is_valid(m.virt));
}

static void test_permissions(void **state)
{
	static const gid_t groups[] = {7, 1000};
	static const struct {
		uint32_t mode;
		int other_read, other_write, group_read, group_write;
	} rows[] = {
		{0600, ARENA_E_ACCESS, ARENA_E_ACCESS, ARENA_E_ACCESS, ARENA_E_ACCESS},
		{0640, ARENA_E_ACCESS, ARENA_E_ACCESS, 0, ARENA_E_ACCESS},
		{0660, ARENA_E_ACCESS, ARENA_E_ACCESS, 0, 0},
		{0644, 0, ARENA_E_ACCESS, 0, ARENA_E_ACCESS},
		{0666, 0, 0, 0, 0},
		{0606, 0, 0, ARENA_E_ACCESS, ARENA_E_ACCESS}, /* the group's bits decide for it */
	};
	struct fake_client *other = client_up(&m, 1001, 3), *member = client_up(&m, 1002, 4);
	struct fake_client *root = client_up(&m, 0, 5);
	size_t i;

	(void)state;
	member->cred.groups = groups;
	member->cred.nr_groups = ARRAY_SIZE(groups);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		create(a, "p", rows[i].mode, 4096);
		assert_int_equal(open_result(b, "p", O_RDWR), 0);
		assert_int_equal(open_result(other, "p", O_RDONLY), rows[i].other_read);
		assert_int_equal(open_result(other, "p", O_RDWR), rows[i].other_write);
		assert_int_equal(open_result(member, "p", O_RDONLY), rows[i].group_read);
		assert_int_equal(open_result(member, "p", O_RDWR), rows[i].group_write);
		assert_int_equal(open_result(root, "p", O_RDWR), 0);
		assert_int_equal(segment_unlink(m.virt, &other->cred, "p"), ARENA_E_ACCESS);
		assert_int_equal(segment_unlink(m.virt, i % 2 ? &root->cred : &b->cred, "p"), 0);
	}
	create(a, "q", 0400, 4096);
	assert_int_equal(open_result(b, "q", O_RDWR), ARENA_E_ACCESS);
	assert_int_equal(open_result(b, "q", O_RDONLY), 0);
	client_down(other);
	client_down(member);
	client_down(root);
}

/* One slot per domain and right; the number is used again when nobody uses it any more. */
static void test_slots(void **state)
{
	struct fake_client *other = client_up(&m, 1001, 3);
	struct segment_open private_, rw, ro, again, third;
	uint64_t at, out;
	uint32_t ours;

	(void)state;
	assert_int_equal(client_open(a, "mine", O_RDWR | O_CREAT, 0600, &private_), 0);
	assert_int_equal(private_.slot, 0); /* in the owner's own domain */
	assert_false(private_.slot_new);
	assert_int_equal(private_.slot_fd, -1);
	assert_int_equal(client_open(a, "ours", O_RDWR | O_CREAT, 0666, &rw), 0);
	assert_true(rw.slot_new && rw.slot && rw.slot_fd >= 0 && !rw.slot_readonly);
	ours = a->mm->slot_records[rw.slot].domain;
	assert_int_equal(mm_truncate_segment(a->mm, rw.handle, 8192, NULL), 0);
	assert_int_equal(client_open(a, "ours", O_RDONLY, 0, &ro), 0);
	assert_true(ro.slot_new && ro.slot != rw.slot && ro.slot_readonly);
	assert_int_equal(client_open(a, "ours", O_RDONLY, 0, &again), 0);
	assert_true(!again.slot_new && again.slot == ro.slot && again.handle != ro.handle);
	assert_int_equal(client_open(other, "ours", O_RDONLY, 0, &third), 0);
	assert_true(third.slot_readonly);
	at = client_map_segment(other, third.handle, 8192, PROT_READ, MAP_SHARED, 0);
	assert_int_equal(client_mmap(other, 0, 8192, PROT_RW, MAP_SHARED, third.handle, 0, &out),
			 ARENA_E_ACCESS);
	assert_int_equal(vm_mprotect(other->mm, at, 4096, PROT_RW), ARENA_E_ACCESS);
	out = client_map_segment(a, rw.handle, 8192, PROT_RW, MAP_SHARED, 0);
	client_write(a, out)[3] = 3;
	assert_int_equal(client_read(other, at)[3], 3);
	assert_refused(other, at, PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	/* A handle less, and a handle and a mapping less. */
	assert_int_equal(mm_close_segment(other->mm, third.handle), 0);
	assert_int_equal(client_read(other, at + 4096)[0], 0);
	assert_int_equal(vm_munmap(other->mm, at, 8192), 0);
	/* Until it has flushed it may have frames mapped from that slot. */
	assert_int_equal(other->mm->slot_records[third.slot].domain, ours);
	assert_int_equal(client_open(other, "ours", O_RDWR, 0, &again), 0);
	assert_true(again.slot_new && again.slot != third.slot && !again.slot_readonly);
	assert_int_equal(mm_close_segment(other->mm, again.handle), 0);
	assert_int_equal(client_open(other, "ours", O_RDONLY, 0, &again), 0);
	assert_true(again.slot_new && again.slot == third.slot && again.slot_readonly);
	assert_int_equal(mm_close_segment(other->mm, again.handle), 0);
	client_ack_all(other);
	assert_int_equal(other->mm->slot_records[third.slot].domain, 0);
	assert_int_equal(client_open(other, "ours", O_RDWR, 0, &again), 0);
	assert_true(again.slot_new && again.slot == third.slot && !again.slot_readonly);
	at = client_map_segment(other, again.handle, 8192, PROT_RW, MAP_SHARED, 0);
	client_write(other, at)[4] = 4;
	assert_int_equal(client_read(a, out)[4], 4);
	assert_true(virt_is_valid(m.virt));
	client_down(other);
}

static void test_object_leaf(void **state)
{
	uint32_t h = create(a, "s", 0600, LEAF(4)), g = open_ok(b, "s", O_RDWR, 0);
	uint64_t at = client_map_segment(a, h, LEAF(4), PROT_RW, MAP_SHARED, 0), to, odd;
	struct mm_stats stats;

	(void)state;
	assert_int_equal(at, ARENA_WINDOW_BASE); /* the first segment's common address */
	to = client_map_segment(b, g, LEAF(4), PROT_READ, MAP_SHARED, 0);
	assert_int_equal(to, at);
	client_write(a, at + PAGE(9))[0] = 9;
	assert_true(client_is_leaf(a, at));
	assert_int_equal(client_read(b, to + PAGE(9))[0], 9);
	assert_true(client_is_leaf(b, to));
	assert_int_equal(client_pfn(a, at), client_pfn(b, to));
	/* Elsewhere, at an address that no leaf fits, single entries of the same frames. */
	odd = client_map_segment(a, h, LEAF(2), PROT_READ, MAP_SHARED, PAGE(9));
	assert_int_equal(client_read(a, odd)[0], 9);
	if (odd % ARENA_LEAF_SIZE != PAGE(9))
		assert_false(client_is_leaf(a, odd));
	assert_int_equal(client_pfn(a, odd), client_pfn(a, at + PAGE(9)));
	/* A part of the leaf unmapped: the frames stay the object's. */
	assert_int_equal(vm_munmap(a->mm, at + PAGE(9), PAGE(1)), 0);
	assert_false(client_is_leaf(a, at));
	client_ack_all(a);
	assert_true(client_tlb_is_current(a));
	assert_int_equal(client_read(b, to + PAGE(9))[0], 9);
	mm_get_stats(a->mm, &stats);
	assert_int_equal(stats.leaves, 0);
	assert_int_equal(vm_madvise(a->mm, at + PAGE(1), PAGE(2), MADV_DONTNEED, NULL), 0);
	assert_int_equal(client_read(b, to + PAGE(9))[0], 9);
	assert_int_equal(client_read(a, at + PAGE(1))[0], 0);
	assert_true(virt_is_valid(m.virt));
	/* The object lives as long as something of it is mapped. */
	assert_int_equal(segment_unlink(m.virt, &a->cred, "s"), 0);
	assert_int_equal(mm_close_segment(a->mm, h), 0);
	assert_int_equal(mm_close_segment(b->mm, g), 0);
	assert_int_equal(client_read(b, to + PAGE(9))[0], 9);
	assert_true(virt_is_valid(m.virt));
}

/* Single frames of one client's small mapping must not be lost under another's leaf. */
static void test_leaf_beside_pages(void **state)
{
	uint32_t h = create(a, "s", 0600, LEAF(8));
	uint64_t small, at, i;

	(void)state;
	for (i = 1; i < 8; i++) {
		small = client_map_segment(a, h, PAGE(2), PROT_RW, MAP_SHARED,
					   (int64_t)(LEAF(i) + PAGE(77)));
		client_write(a, small)[1] = (uint8_t)i;
		assert_int_equal(vm_munmap(a->mm, small, PAGE(2)), 0);
	}
	at = client_map_segment(a, h, LEAF(8), PROT_RW, MAP_SHARED, 0);
	assert_int_equal(vm_madvise(a->mm, at, LEAF(8), MADV_SEQUENTIAL, 0), 0);
	client_write(a, at);
	assert_true(client_is_leaf(a, at));
	for (i = 1; i < 8; i++) {
		assert_int_equal(client_read(a, at + LEAF(i) + PAGE(77))[1], i);
		client_write(a, at + LEAF(i));
		assert_false(client_is_leaf(a, at + LEAF(i)));
	}
	assert_true(virt_is_valid(m.virt));
}

static void test_truncate_leaf(void **state)
{
	uint32_t h = create(a, "t", 0600, LEAF(2)), g = open_ok(b, "t", O_RDWR, 0);
	uint64_t at = client_map_segment(a, h, LEAF(2), PROT_RW, MAP_SHARED, 0), i;
	uint64_t to = client_map_segment(b, g, LEAF(2), PROT_RW, MAP_SHARED, 0);
	uint64_t cut = PAGE(100) + 1000, free_before;
	uint8_t *late;

	(void)state;
	for (i = 0; i < 2 * ARENA_LEAF_PAGES; i++)
		memset(client_write(a, at + PAGE(i)), 1 + (int)(i % 200), ARENA_PAGE_SIZE);
	late = client_write(b, to + PAGE(300));
	free_before = phys_free_pages(m.phys);
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)cut, NULL), 0);
	assert_true(mm_flush_pending(a->mm) && mm_flush_pending(b->mm));
	assert_false(client_is_leaf(b, to));
	assert_int_equal(client_read(b, to + PAGE(100))[999], 101);
	assert_int_equal(client_read(b, to + PAGE(100))[1000], 0);
	assert_refused(b, to + PAGE(101), PROT_READ, SIGBUS, BUS_ADRERR);
	assert_refused(a, at + LEAF(1), PROT_WRITE, SIGBUS, BUS_ADRERR);
	late[17] = 17; /* b has not heard of it yet */
	assert_true(virt_is_valid(m.virt));
	client_ack_all(a);
	assert_int_equal(phys_free_pages(m.phys), free_before);
	client_ack_all(b);
	assert_true(client_tlb_is_current(a) && client_tlb_is_current(b));
	assert_int_equal(phys_free_pages(m.phys), free_before + ARENA_LEAF_PAGES);
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)LEAF(2), NULL), 0);
	for (i = 101; i < 2 * ARENA_LEAF_PAGES; i++)
		assert_true(bytes_are_zero(client_read(b, to + PAGE(i)), ARENA_PAGE_SIZE));
	assert_true(bytes_are_zero(client_read(b, to + PAGE(100)) + 1000, 3096));
	assert_int_equal(client_read(a, at + PAGE(99))[5], 100);
	/* Single frames. */
	assert_int_equal(mm_truncate_segment(a->mm, h, 0, NULL), 0);
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)PAGE(10), NULL), 0);
	for (i = 0; i < 10; i++)
		memset(client_write(a, at + PAGE(i)), 7, ARENA_PAGE_SIZE);
	assert_false(client_is_leaf(a, at));
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)PAGE(5) + 8, NULL), 0);
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)PAGE(10), NULL), 0);
	assert_int_equal(client_read(b, to + PAGE(5))[7], 7);
	assert_true(bytes_are_zero(client_read(b, to + PAGE(5)) + 8, 4088));
	assert_true(bytes_are_zero(client_read(b, to + PAGE(6)), 4096));
	assert_int_equal(open_result(b, "t", O_RDONLY | O_TRUNC), 0);
	assert_refused(a, at, PROT_READ, SIGBUS, BUS_ADRERR);
	assert_true(virt_is_valid(m.virt));
}

static void test_private_copy(void **state)
{
	uint32_t h = create(a, "c", 0600, LEAF(2)), g = open_ok(b, "c", O_RDONLY, 0);
	uint64_t at = client_map_segment(a, h, LEAF(2), PROT_RW, MAP_SHARED, 0), seq;
	uint64_t to = client_map_segment(b, g, LEAF(2), PROT_RW, MAP_PRIVATE, 0);
	unsigned level;

	(void)state;
	client_write(a, at + PAGE(3))[0] = 1;
	assert_int_equal(client_read(b, to + PAGE(3))[0], 1);
	assert_true(client_is_leaf(b, to));
	assert_false(client_walk(b, to, &level) & ARENA_PTE_WRITE);
	client_write(a, at + PAGE(3))[0] = 2;
	assert_int_equal(client_read(b, to + PAGE(3))[0], 2); /* not copied yet */
	seq = mm_flush_posted(b->mm);
	client_write(b, to + PAGE(3))[1] = 5;
	assert_int_equal(mm_flush_posted(b->mm), seq + 1);
	assert_int_equal(client_read(b, to + PAGE(3))[0], 2);
	client_write(a, at + PAGE(3))[0] = 3;
	assert_int_equal(client_read(b, to + PAGE(3))[0], 2);
	assert_int_equal(client_read(a, at + PAGE(3))[1], 0);
	client_ack_all(b);
	assert_true(client_tlb_is_current(b));
	/* A first access that writes, where the object has nothing yet. */
	client_write(b, to + LEAF(1) + PAGE(8))[0] = 8;
	assert_int_equal(client_read(a, at + LEAF(1) + PAGE(8))[0], 0);
	assert_true(virt_is_valid(m.virt));
	/* Truncation takes copies past the end, not those before it in the same leaf. */
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)(LEAF(1) + PAGE(8)), NULL), 0);
	assert_int_equal(client_read(b, to + PAGE(3))[1], 5);
	assert_refused(b, to + LEAF(1) + PAGE(8), PROT_READ, SIGBUS, BUS_ADRERR);
	assert_int_equal(mm_truncate_segment(a->mm, h, (int64_t)PAGE(4), NULL), 0);
	assert_int_equal(client_read(b, to + PAGE(3))[1], 5);
	/* Read-only and back: the copy is writable again, the object's page is not. */
	assert_int_equal(vm_mprotect(b->mm, to, LEAF(2), PROT_READ), 0);
	assert_refused(b, to + PAGE(3), PROT_WRITE, SIGSEGV, SEGV_ACCERR);
	assert_int_equal(client_read(b, to)[0], 0);
	assert_int_equal(vm_mprotect(b->mm, to, LEAF(2), PROT_RW), 0);
	assert_false(client_walk(b, to, &level) & ARENA_PTE_WRITE);
	assert_true(client_walk(b, to + PAGE(3), &level) & ARENA_PTE_WRITE);
	assert_int_equal(vm_madvise(b->mm, to, LEAF(2), MADV_DONTNEED, NULL), 0);
	assert_int_equal(client_read(b, to + PAGE(3))[0], 3);
	assert_int_equal(client_read(b, to + PAGE(3))[1], 0);
	assert_true(virt_is_valid(m.virt));
}

static void test_common_address(void **state)
{
	struct fake_client *far = NULL;
	uint32_t h = create(a, "one", 0666, PAGE(3)), g = create(b, "two", 0666, PAGE(3)), k;
	uint64_t one = client_map_segment(a, h, PAGE(3), PROT_RW, MAP_SHARED, 0), two;

	(void)state;
	two = client_map_segment(b, g, PAGE(3), PROT_RW, MAP_SHARED, 0);
	assert_true(two >= one + (UINT64_C(1) << 30)); /* room to grow */
	k = open_ok(a, "two", O_RDWR, 0);
	assert_int_equal(client_map_segment(a, k, PAGE(2), PROT_RW, MAP_SHARED, PAGE(1)),
			 two + PAGE(1));
	assert_int_not_equal(client_map_segment(a, k, PAGE(3), PROT_RW, MAP_SHARED, 0), two);
	/* Where the window lies elsewhere, the common address means nothing. */
	assert_int_equal(client_try_up(&m, 1000, 9, ARENA_WINDOW_BASE + 4 * TEST_WINDOW, &far), 0);
	k = open_ok(far, "one", O_RDWR, 0);
	client_write(a, one)[0] = 11;
	assert_int_equal(
		client_read(far, client_map_segment(far, k, PAGE(3), PROT_RW, MAP_SHARED, 0))[0],
		11);
	client_down(far);
}

static void test_handle_limit(void **state)
{
	struct segment_open open;
	uint32_t n;
	int r = 0;

	(void)state;
	create(b, "x", 0600, 4096);
	for (n = 0; !r; n++)
		r = client_open(a, "x", O_RDWR, 0, &open);
	assert_int_equal(r, ARENA_E_TOO_MANY);
	assert_int_equal(n - 1, ARENA_MM_MAX_HANDLES);
	assert_int_equal(mm_close_segment(a->mm, 7), 0);
	assert_int_equal(client_open(a, "x", O_RDWR, 0, &open), 0);
	assert_int_equal(open.handle, 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_names, up, down),
		cmocka_unit_test_setup_teardown(test_permissions, up, down),
		cmocka_unit_test_setup_teardown(test_slots, up, down),
		cmocka_unit_test_setup_teardown(test_object_leaf, up, down),
		cmocka_unit_test_setup_teardown(test_leaf_beside_pages, up, down),
		cmocka_unit_test_setup_teardown(test_truncate_leaf, up, down),
		cmocka_unit_test_setup_teardown(test_private_copy, up, down),
		cmocka_unit_test_setup_teardown(test_common_address, up, down),
		cmocka_unit_test_setup_teardown(test_handle_limit, up, down),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
