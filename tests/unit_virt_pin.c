/* SPDX-License-Identifier: MIT */
/* unit_virt_pin.c - pins: what they hold, how they end, and what a crash leaves of their records. */
#include <fcntl.h>
#include <time.h>

#include "tests/virt_fake.h"

static struct fake_machine m;
static struct fake_client *c;

static int setup(void **state)
{
	(void)state;
	test_limit[VM_LIMIT_MEMLOCK] = UINT64_MAX;
	machine_up(&m, UINT64_C(64) << 20, 1);
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

static int pin(uint64_t at, uint64_t len, bool write)
{
	uint64_t next = at, end = at + len;
	int r = 0;

	while (next < end && !r)
		r = vm_pin(c->mm, next, end - next, write, 0, &next);
	return r;
}

static uint64_t map_pages(uint64_t len)
{
	uint64_t at = client_map(c, len, PROT_RW, MAP_ANON_PRIVATE);

	assert_int_equal(vm_madvise(c->mm, at, len, MADV_NOHUGEPAGE, NULL), 0);
	return at;
}

static void test_pin_outlives_mapping(void **state)
{
	uint64_t at = map_pages(PAGE(4));
	struct page *page;
	pfn_t pfn;

	(void)state;
	assert_int_equal(pin(at, PAGE(2), true), 0);
	assert_int_equal(c->mm->pinned_vm, 2);
	pfn = client_pfn(c, at);
	page = pfn_to_page(m.phys, pfn);
	memset(domain_address(c->mm->domain, pfn), 0x77, ARENA_PAGE_SIZE);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(4)), 0);
	client_ack_all(c);
	assert_int_equal(page->refcount, 1);
	assert_int_equal(page->mapcount, 0);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(((uint8_t *)domain_address(c->mm->domain, pfn))[100], 0x77);
	/* Other memory at the address is another matter. */
	assert_int_equal(
		client_mmap(c, at, PAGE(4), PROT_RW, MAP_ANON_PRIVATE | MAP_FIXED, 0, 0, &at), 0);
	assert_int_equal(*client_read(c, at), 0);
	assert_int_not_equal(client_pfn(c, at), pfn);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(2)), 0);
	assert_int_equal(page->refcount, 0);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(1)), ARENA_E_INVALID);
	assert_int_equal(c->mm->pinned_vm, 0);
}

static void test_pins_count(void **state)
{
	uint64_t at = map_pages(PAGE(40));
	unsigned i;

	(void)state;
	assert_int_equal(pin(at, PAGE(40), false), 0);
	assert_int_equal(pin(at + PAGE(10), PAGE(10), true), 0);
	assert_int_equal(c->mm->pinned_vm, 50);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(12), PAGE(1)), 0);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(12), PAGE(1)), 0);
	/* All or nothing. */
	assert_int_equal(vm_unpin(c->mm, at, PAGE(40)), ARENA_E_INVALID);
	assert_int_equal(c->mm->pinned_vm, 48);
	assert_true(virt_is_valid(m.virt));
	for (i = 0; i < 40; i++)
		if (i != 12)
			assert_int_equal(vm_unpin(c->mm, at + PAGE(i), PAGE(1)), 0);
	assert_int_equal(c->mm->pinned_vm, 9);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(10), PAGE(2)), 0);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(13), PAGE(7)), 0);
	assert_int_equal(c->mm->pinned_vm, 0);
	/* What is not unpinned ends with the client. */
	assert_int_equal(pin(at, PAGE(3), true), 0);
}

static void test_pin_breaks_cow(void **state)
{
	struct segment_open open;
	uint64_t at;

	(void)state;
	assert_int_equal(client_open(c, "s", O_RDWR | O_CREAT, 0600, &open), 0);
	assert_int_equal(mm_truncate_segment(c->mm, open.handle, (int64_t)PAGE(4), NULL), 0);
	at = client_map_segment(c, open.handle, PAGE(6), PROT_RW, MAP_PRIVATE, 0);
	client_read(c, at);
	assert_true(pfn_to_page(m.phys, client_pfn(c, at))->flags & PG_OBJECT);
	assert_int_equal(pin(at, PAGE(1), true), 0);
	assert_true(pfn_to_page(m.phys, client_pfn(c, at))->flags & PG_ANON);
	assert_int_equal(pin(at, PAGE(6), true), ARENA_E_FAULT); /* past its end */
	assert_int_equal(vm_mprotect(c->mm, at, PAGE(1), PROT_READ), 0);
	assert_int_equal(pin(at, PAGE(1), true), ARENA_E_ACCESS);
	assert_int_equal(pin(at - PAGE(1), PAGE(1), false), ARENA_E_NOT_MAPPED);
	test_limit[VM_LIMIT_MEMLOCK] = PAGE(4);
	assert_int_equal(pin(at, PAGE(4), false), ARENA_E_NO_MEMORY);
	assert_int_equal(segment_unlink(m.virt, &c->cred, "s"), 0);
}

/* Pinned pages never move: neither into a leaf, nor apart from it. */
static void test_pinned_stay(void **state)
{
	uint64_t at = client_map(c, LEAF(2), PROT_RW, MAP_ANON_PRIVATE), small, i;
	pfn_t pfn;

	(void)state;
	client_write(c, at);
	assert_true(client_is_leaf(c, at));
	pfn = client_pfn(c, at);
	assert_int_equal(pin(at + PAGE(100), PAGE(3), true), 0);
	assert_int_equal(vm_munmap(c->mm, at, PAGE(50)), 0); /* the entry is split */
	assert_int_equal(client_pfn(c, at + PAGE(101)), pfn + 101);
	client_ack_all(c);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_munmap(c->mm, at + PAGE(50), LEAF(1) - PAGE(50)), 0);
	client_ack_all(c);
	assert_int_equal(pfn_to_page(m.phys, pfn)->refcount, 3);
	assert_int_equal(vm_unpin(c->mm, at + PAGE(100), PAGE(3)), 0);
	assert_int_equal(pfn_to_page(m.phys, pfn)->refcount, 0);
	small = map_pages(LEAF(2));
	small = ALIGN_UP(small, ARENA_LEAF_SIZE);
	for (i = 0; i < 512; i++)
		client_write(c, small + PAGE(i));
	assert_int_equal(pin(small + PAGE(9), PAGE(1), true), 0);
	assert_int_equal(vm_madvise(c->mm, small, LEAF(1), MADV_HUGEPAGE, NULL), 0);
	for (i = 0; i < 3; i++) {
		assert_int_equal(vm_madvise(c->mm, small, LEAF(1), MADV_COLLAPSE, NULL),
				 ARENA_E_AGAIN);
		client_ack_all(c);
	}
	assert_false(client_is_leaf(c, small));
}

static void recover_pins(uint32_t n)
{
	pin_index_free(c->mm);
	assert_int_equal(pin_index_reserve(c->mm, n), 0);
	mm_recover_pins(c->mm, n);
	assert_true(mm_pins_are_valid(c->mm));
}

/* A run is cut in three steps; whatever the last one was, each page is pinned as often as before. */
static void test_records_after_crash(void **state)
{
	uint64_t at = map_pages(PAGE(10));
	struct arena_pin_record *r =
		(struct arena_pin_record *)(void *)(c->mm->base + ARENA_MM_PINS_OFFSET);
	unsigned i;

	(void)state;
	for (i = 0; i < 10; i++)
		client_write(c, at + PAGE(i));
	assert_int_equal(pin(at, PAGE(10), true), 0);
	assert_int_equal(r[0].pages, 10);
	assert_int_equal(pin(at, PAGE(10), true), 0); /* twice: the other run means nothing */
	/* The upper part is written, the run not yet shortened. */
	r[2] = (struct arena_pin_record){at + PAGE(6), r[0].pfn + 6, 4 | ARENA_PIN_BORN};
	recover_pins(3);
	assert_int_equal(r[2].pages, 0);
	assert_int_equal(c->mm->pinned_vm, 20);
	assert_true(virt_is_valid(m.virt));
	/* It is shortened, the part not yet true. */
	r[2] = (struct arena_pin_record){at + PAGE(6), r[0].pfn + 6, 4 | ARENA_PIN_BORN};
	r[0].pages = 6;
	recover_pins(3);
	assert_int_equal(r[2].pages, 4);
	assert_int_equal(c->mm->pinned_vm, 20);
	assert_true(virt_is_valid(m.virt));
	assert_int_equal(vm_unpin(c->mm, at, PAGE(10)), 0);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(10)), 0);
	assert_int_equal(c->mm->pinned_vm, 0);
}

static void test_follow_page(void **state)
{
	uint64_t at = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE), direct, number;
	const struct vma *v;
	struct pte_ref ref;
	pfn_t pfn = PFN_NONE;

	(void)state;
	assert_null(follow_page(c->mm, at, false, &pfn));
	client_write(c, at);
	assert_ptr_equal(follow_page(c->mm, at + PAGE(7), true, &pfn),
			 pfn_to_page(m.phys, client_pfn(c, at)));
	assert_int_equal(pfn, client_pfn(c, at) + 7);
	assert_int_equal(vm_mprotect(c->mm, at, LEAF(1), PROT_READ), 0);
	assert_null(follow_page(c->mm, at, true, &pfn));
	assert_non_null(follow_page(c->mm, at, false, &pfn));
	assert_null(follow_page(c->mm, at + LEAF(1), false, &pfn));
	/* Frames by number are nobody's to hold. */
	assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_DMA, 0, 0, &direct, &number), 0);
	v = vma_find(c->mm, direct);
	assert_true(v->flags & VM_PFNMAP && v->flags & VM_IO);
	assert_true(pgtable_lookup(c->mm, direct, &ref) && *ref.entry);
	assert_null(vm_normal_page(v, *ref.entry));
	assert_null(follow_page(c->mm, direct, true, &pfn));
	assert_int_equal(pin(direct, PAGE(1), true), ARENA_E_FAULT);
	assert_int_equal(vm_mlock(c->mm, direct, PAGE(1), false), 0); /* as Linux: passed over */
	assert_int_equal(c->mm->locked_vm, 0);
	assert_int_equal(vm_free_pages(c->mm, direct, 0), 0);
}

#define PINNED 512u

/* Runs that overlap in every way, against a count for each page. */
static void test_overlaps(void **state)
{
	uint64_t at = map_pages(PAGE(PINNED)), i, n, sum = 0;
	struct prng r = {.state = test_seed()};
	unsigned pins[PINNED] = {0}, turn;

	(void)state;
	for (turn = 0; turn < 6000; turn++) {
		uint64_t first = prng_below(&r, PINNED);
		uint64_t len = 1 + prng_below(&r, prng_below(&r, 8) ? 12 : PINNED - first);
		bool all = true;

		len = MIN(len, PINNED - first);
		/* The other way round now and then, so that there are many and few. */
		if (prng_below(&r, 100) < (turn / 1500 % 2 ? 30 : 65)) {
			assert_int_equal(pin(at + PAGE(first), PAGE(len), true), 0);
			for (i = first; i < first + len; i++)
				pins[i]++;
			sum += len;
			continue;
		}
		for (i = first; i < first + len; i++)
			all &= pins[i] > 0;
		assert_int_equal(vm_unpin(c->mm, at + PAGE(first), PAGE(len)),
				 all ? 0 : ARENA_E_INVALID);
		for (i = first; all && i < first + len; i++)
			pins[i]--;
		sum -= all ? len : 0;
		assert_int_equal(c->mm->pinned_vm, sum);
		assert_true(turn % 16 || mm_pins_are_valid(c->mm));
	}
	assert_true(virt_is_valid(m.virt));
	recover_pins(pin_index_top(c->mm));
	assert_int_equal(c->mm->pinned_vm, sum);
	for (n = 0; n < PINNED; n++)
		for (; pins[n]; pins[n]--)
			assert_int_equal(vm_unpin(c->mm, at + PAGE(n), PAGE(1)), 0);
	assert_int_equal(c->mm->pinned_vm, 0);
}

static uint64_t cpu_time(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

#define PART 4096u
#define PARTS (ARENA_MM_MAX_PINS / PART)

/* Pin or unpin one page after the other, out of order: the CPU time it takes. */
static uint64_t time_part(uint64_t at, bool unpin)
{
	uint64_t since = cpu_time();
	unsigned i;

	for (i = 0; i < PART; i++) {
		uint64_t page = at + PAGE(i * 1237u % PART);

		assert_int_equal(unpin ? vm_unpin(c->mm, page, PAGE(1)) : pin(page, PAGE(1), true),
				 0);
	}
	return cpu_time() - since;
}

/* As many records as there can be: the last costs what the first did. A scan of them is some 30 times as much. */
static void test_many_pins(void **state)
{
	uint64_t at = map_pages(PAGE(PART)), time[2][PARTS], few, many;
	unsigned i;

	(void)state;
	for (i = 0; i < PART; i++)
		client_write(c, at + PAGE(i));
	for (i = 0; i < PARTS; i++)
		time[0][i] = time_part(at, false);
	assert_int_equal(pin(at, PAGE(1), true), ARENA_E_NO_MEMORY);
	assert_true(virt_is_valid(m.virt));
	for (i = PARTS; i-- > 0;)
		time[1][i] = time_part(at, true);
	assert_int_equal(vm_unpin(c->mm, at, PAGE(1)), ARENA_E_INVALID);
	for (i = 0; i < 2; i++) {
		few = MIN(time[i][0], MIN(time[i][1], time[i][2]));
		many = MIN(time[i][PARTS - 1], MIN(time[i][PARTS - 2], time[i][PARTS - 3]));
		print_message("%s: %lu ns a page with few records, %lu with many\n",
			      i ? "unpin" : "pin", (unsigned long)(few / PART),
			      (unsigned long)(many / PART));
		assert_true(many < 8 * few);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_pin_outlives_mapping),
		TEST(test_pins_count),
		TEST(test_pin_breaks_cow),
		TEST(test_pinned_stay),
		TEST(test_records_after_crash),
		TEST(test_follow_page),
		TEST(test_overlaps),
		TEST(test_many_pins),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
