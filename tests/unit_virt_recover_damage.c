/* SPDX-License-Identifier: MIT */
/*
 * Stored files that no crash leaves behind: cut off, missing, of another version, swapped, with bits
 * flipped. One client, or the users of one segment, may be lost by it, with a line in the log; the
 * others keep every byte. What a lost client may have mapped is nobody else's until it is dead.
 *
 * Four clients: 0 and 1 share a segment and a uid, 2 has a segment of its own kind, 3 (the victim as a
 * rule) has a bit of everything. ARENA_TEST_DAMAGE=magic runs that one alone, ARENA_TEST_SEED repeats the
 * random part.
 */
#include <fcntl.h>

#include "tests/virt_crash.h"

#define ARENA_SIZE (UINT64_C(64) << 20)
#define NR 4
#define PAGES 24

static struct fake_machine m;
static struct fake_client *client[NR];
static uint64_t anon[NR], leaf[NR], seg[NR], direct[NR];
static uint32_t handle[NR];
static bool lost[NR];
static struct prng rng;

static void put(struct fake_client *c, uint64_t addr, uint64_t value)
{
	memcpy(client_write(c, addr), &value, sizeof(value));
}

static uint64_t get(struct fake_client *c, uint64_t addr)
{
	uint64_t value;

	memcpy(&value, client_read(c, addr), sizeof(value));
	return value;
}

static void fill(unsigned i, const char *name, uint32_t mode, uint64_t mark)
{
	struct fake_client *c = client[i];
	struct segment_open open;
	uint64_t n, pfn;

	anon[i] = client_map(c, PAGE(PAGES), PROT_RW, MAP_ANON_PRIVATE);
	assert_int_equal(vm_madvise(c->mm, anon[i], PAGE(PAGES), MADV_NOHUGEPAGE, 0), 0);
	for (n = 0; n < PAGES; n++)
		put(c, anon[i] + PAGE(n), i * 1000 + n);
	leaf[i] = client_map(c, LEAF(1), PROT_RW, MAP_ANON_PRIVATE);
	put(c, leaf[i], i * 1000 + 500);
	assert_int_equal(client_open(c, name, O_RDWR | O_CREAT, mode, &open), 0);
	handle[i] = open.handle;
	if (open.size == 0)
		assert_int_equal(mm_truncate_segment(c->mm, handle[i], (int64_t)PAGE(8), NULL), 0);
	seg[i] = client_map_segment(c, handle[i], PAGE(8), PROT_RW, MAP_SHARED, 0);
	put(c, seg[i] + PAGE(2), mark);
	assert_int_equal(vm_alloc_pages(c->mm, ARENA_GFP_HIGHMEM, 2, 0, &direct[i], &pfn), 0);
	put(c, direct[i] + PAGE(3), i * 1000 + 700);
}

static void up(void)
{
	static const struct {
		uid_t uid;
		const char *segment;
		uint32_t mode;
		uint64_t mark;
	} who[NR] = {{1000, "ours", 0666, 42},
		     {1000, "ours", 0666, 42},
		     {1001, "mine", 0600, 43},
		     {1000, "last", 0644, 44}};

	store_fake();
	crash.m = &m;
	machine_up(&m, ARENA_SIZE, 1);
	for (unsigned i = 0; i < NR; i++)
		client[i] = client_up(&m, who[i].uid, (pid_t)(100 + i));
	for (unsigned i = 0; i < NR; i++)
		fill(i, who[i].segment, who[i].mode, who[i].mark);
	for (unsigned i = 0; i < NR; i++)
		client_ack_all(client[i]);
}

static struct mm *condemned(const struct fake_client *c)
{
	struct mm *mm = NULL;

	while ((mm = mm_next_condemned(m.virt, mm)))
		if (mm_pid(mm) == c->cred.pid || mm_id(mm) == c->id)
			break;
	return mm;
}

/* What a lost client has mapped is what it was, unless its frames say nothing true any more. */
static void crash_reborn(void)
{
	for (unsigned i = 0; i < NR; i++) {
		if (!client[i])
			continue;
		client[i]->mm = crash_find(client[i]->id);
		lost[i] = !client[i]->mm;
		if (!lost[i]) {
			client_reborn(client[i]);
			assert_true(client_check_tlb(client[i]));
		}
	}
}

static void check_survivor(unsigned i)
{
	static const uint64_t mark[NR] = {42, 42, 43, 44};
	uint64_t n;

	for (n = 0; n < PAGES; n++)
		assert_int_equal(get(client[i], anon[i] + PAGE(n)), i * 1000 + n);
	assert_int_equal(get(client[i], leaf[i]), i * 1000 + 500);
	assert_int_equal(get(client[i], seg[i] + PAGE(2)), mark[i]);
	assert_int_equal(get(client[i], direct[i] + PAGE(3)), i * 1000 + 700);
	assert_int_equal(vm_free_pages(client[i]->mm, direct[i], 2), 0);
	put(client[i], client_map(client[i], PAGE(3), PROT_RW, MAP_ANON_PRIVATE), 1);
	client_ack_all(client[i]);
}

/* Take all memory: what a lost client has mapped must not be among it, see client_check_tlb(). */
static void hoard(struct fake_client *c)
{
	struct fault_refusal refusal;
	uint64_t at = client_map(c, ARENA_SIZE, PROT_RW, MAP_ANON_PRIVATE), n;

	assert_int_equal(vm_madvise(c->mm, at, ARENA_SIZE, MADV_NOHUGEPAGE, 0), 0);
	for (n = 0; n < ARENA_SIZE >> ARENA_PAGE_SHIFT; n++)
		if (!client_access(c, at + PAGE(n), PROT_WRITE, 0, &refusal))
			break;
	assert_int_equal(vm_munmap(c->mm, at, ARENA_SIZE), 0);
	client_ack_all(c);
}

static void down(void)
{
	static const char *const names[] = {"ours", "mine", "last"};
	const struct credentials root = {0};
	struct mm *mm;
	unsigned i;

	for (i = 0; i < NR; i++)
		if (!lost[i])
			client[i] = client_down(client[i]);
	while ((mm = mm_next_condemned(m.virt, NULL)))
		crash_do_destroy(mm, NULL);
	for (i = 0; i < ARRAY_SIZE(names); i++)
		segment_unlink(m.virt, &root, names[i]);
	machine_down(&m);
}

/* After the damage: the clients in `may` may be lost, those in `must` must. */
static void check(unsigned must, unsigned may, bool frames_are_true)
{
	unsigned i, n = 0, hoarded = 0;

	crash_recover();
	for (i = 0; i < NR; i++) {
		if (lost[i] && !((must | may) & 1u << i))
			fail_msg("client %u is lost", i);
		if (!lost[i] && must & 1u << i)
			fail_msg("client %u was not noticed", i);
		n += lost[i];
	}
	assert_int_equal(crash.stats.clients, NR - n);
	assert_int_equal(crash.stats.lost_clients, n);
	for (i = 0; i < NR; i++)
		if (!lost[i])
			check_survivor(i);
	/* Of two clients of a uid the first one gets whatever both could. */
	for (i = 0; i < NR; i++) {
		if (lost[i] || hoarded & 1u << (client[i]->cred.uid - 1000))
			continue;
		hoard(client[i]);
		hoarded |= 1u << (client[i]->cred.uid - 1000);
	}
	for (i = 0; i < NR && frames_are_true; i++)
		if (lost[i])
			assert_true(client_check_tlb(client[i]));
	/* The next worker sees what this one saw. */
	crash_recover();
	for (i = 0; i < NR; i++)
		assert_true(!lost[i] || (must | may) & 1u << i);
	assert_int_equal(crash.stats.lost_clients, n);
	down();
}

/* ---- one damage each ------------------------------------------------------------------------------ */

static struct mm *victim(void)
{
	return client[3]->mm;
}

static struct arena_vma_record *a_vma(bool of_object)
{
	struct vma *v;

	RB_FOREACH(v, vma_tree, &victim()->vmas)
		if (!(v->flags & VM_DIRECT) && of_object == (v->object != NULL))
			return &victim()->records[v->record];
	return NULL;
}

static uint64_t *an_entry(uint64_t addr)
{
	struct pte_ref ref;

	assert_true(pgtable_lookup(victim(), addr, &ref) && *ref.entry);
	return ref.entry;
}

static void replace_file(const char *prefix, const char *name, uint64_t size)
{
	int fd = os_memfd(name, size);

	assert_true(fd >= 0);
	store_remove_number(prefix, mm_id(victim()));
	assert_int_equal(store_add_number(prefix, mm_id(victim()), fd), 0);
	close(fd);
}

static void missing_mm(void)
{
	store_remove_number("mm", mm_id(victim()));
}

static void missing_channel(void)
{
	store_remove_number("channel", mm_id(victim()));
}

static void short_mm(void)
{
	replace_file("mm", "mm:4", ARENA_MM_FILE_SIZE / 2);
}

static void empty_mm(void)
{
	replace_file("mm", "mm:4", ARENA_MM_FILE_SIZE);
}

static void short_channel(void)
{
	replace_file("channel", "channel:4", 4096);
}

static void unsealed_mm(void)
{
	int fd = memfd_create("mm:4", MFD_CLOEXEC);

	assert_true(fd >= 0 && ftruncate(fd, (off_t)ARENA_MM_FILE_SIZE) == 0);
	store_remove_number("mm", mm_id(victim()));
	assert_int_equal(store_add_number("mm", mm_id(victim()), fd), 0);
	close(fd);
}

static void swap_files(const char *prefix, int a, int b)
{
	store_remove_number(prefix, mm_id(victim()));
	store_remove_number(prefix, mm_id(client[2]->mm));
	assert_int_equal(store_add_number(prefix, mm_id(victim()), b), 0);
	assert_int_equal(store_add_number(prefix, mm_id(client[2]->mm), a), 0);
}

static void swapped_mm(void)
{
	swap_files("mm", mm_file(victim()), mm_file(client[2]->mm));
}

static void swapped_channel(void)
{
	swap_files("channel", mm_channel_file(victim()), mm_channel_file(client[2]->mm));
}

static void version(void)
{
	victim()->header->abi_major++;
}

static void magic(void)
{
	victim()->header->magic ^= 1;
}

static void window(void)
{
	victim()->header->window_base += ARENA_PAGE_SIZE;
}

static void layout(void)
{
	victim()->header->mmap_base = UINT64_MAX;
}

static void table_count(void)
{
	victim()->header->nr_tables = 2;
}

static void policy(void)
{
	victim()->header->policy_mode = 2; /* of no node */
}

static void policy_nodes(void)
{
	victim()->header->policy_nodes = UINT64_MAX;
}

static void txn(void)
{
	victim()->header->txn = (struct arena_vma_txn){.armed = 1, .nr_kill = 1000};
}

static void slot_domain(void)
{
	victim()->slot_records[victim()->handles[handle[3] - 1].slot].domain = 999;
}

static void slot_zero(void)
{
	victim()->slot_records[0].domain = domain_id(mm_domain(client[2]->mm));
}

static void handle_object(void)
{
	victim()->handle_records[handle[3] - 1].object = 77;
}

static void handle_far(void)
{
	victim()->handle_records[ARENA_MM_MAX_HANDLES - 1].object = UINT32_MAX;
}

static void vma_state(void)
{
	a_vma(false)->state = 9;
}

static void vma_gone(void)
{
	a_vma(false)->state = ARENA_VMA_FREE;
}

static void vma_overlap(void)
{
	a_vma(false)->end += LEAF(20);
}

static void vma_backwards(void)
{
	a_vma(false)->end = a_vma(false)->start - ARENA_PAGE_SIZE;
}

static void vma_object(void)
{
	a_vma(true)->object = 2; /* there is one, in another domain */
}

static void vma_pgoff_flips(void)
{
	a_vma(true)->pgoff += 3;
}

static void entry_of_another(void)
{
	uint64_t other = client_pfn(client[0], anon[0]), *e = an_entry(anon[3]);

	*e = (*e & ~ARENA_PTE_PFN_MASK) | other << ARENA_PTE_PFN_SHIFT;
}

static void entry_of_another_domain(void)
{
	uint64_t other = client_pfn(client[2], anon[2]), *e = an_entry(anon[3]);

	*e = (*e & ~ARENA_PTE_PFN_MASK) | other << ARENA_PTE_PFN_SHIFT;
}

static void entry_of_free_frame(void)
{
	uint64_t *e = an_entry(anon[3]);

	*e = (*e & ~ARENA_PTE_PFN_MASK) | (ARENA_SIZE / ARENA_PAGE_SIZE - 1) << ARENA_PTE_PFN_SHIFT;
}

static void entry_beyond(void)
{
	*an_entry(anon[3]) |= ARENA_PTE_PFN_MASK;
}

static void entry_bits(void)
{
	*an_entry(anon[3]) |= UINT64_C(1) << 9;
}

static void entry_slot(void)
{
	*an_entry(anon[3]) |= UINT64_C(4095) << ARENA_PTE_SLOT_SHIFT;
}

static void zeros(uint64_t addr, uint64_t page, unsigned slot, bool asked)
{
	uint64_t *e = an_entry(addr), pfn = phys_nr_frames(m.phys) + page;

	victim()->header->uses_zero = asked;
	*e = (*e & ~(ARENA_PTE_PFN_MASK | ARENA_PTE_WRITE)) | pfn << ARENA_PTE_PFN_SHIFT |
	     (uint64_t)slot << ARENA_PTE_SLOT_SHIFT;
}

static void zeros_not_asked(void)
{
	zeros(anon[3], 3, ARENA_SLOT_ZERO, false);
}

static void zeros_slot(void)
{
	zeros(anon[3], 3, 0, true);
}

static void zeros_beyond(void)
{
	zeros(anon[3], ARENA_LEAF_PAGES, ARENA_SLOT_ZERO, true);
}

static void zeros_leaf_moved(void)
{
	zeros(leaf[3], 1, ARENA_SLOT_ZERO, true);
}

static void zeros_of_segment(void)
{
	zeros(seg[3] + PAGE(2), 2, ARENA_SLOT_ZERO, true);
}

static void zeros_flag(void)
{
	victim()->header->uses_zero = 2;
}

/* The direct map's entry, in a mapping that says another number. */
static void pfn_map_other(void)
{
	struct vm_mmap_args a = {.len = PAGE(2), .prot = PROT_RW};
	uint64_t at = 0, pfn = client_pfn(client[3], direct[3]);

	assert_int_equal(vm_mmap_pfn(victim(), &a, pfn, &at), 0);
	an_entry(at)[0] = an_entry(at)[1];
}

static void pfn_map_beyond(void)
{
	struct vm_mmap_args a = {.len = PAGE(2), .prot = PROT_RW};
	uint64_t at = 0, pfn = client_pfn(client[3], direct[3]);

	assert_int_equal(vm_mmap_pfn(victim(), &a, pfn, &at), 0);
	victim()->records[vma_find(victim(), at)->record].pgoff = phys_nr_frames(m.phys) - 1;
}

/* A frame of arena_alloc_pages() where there is ordinary memory. */
static void pfn_in_anon(void)
{
	uint64_t *e = an_entry(anon[3]), pfn = client_pfn(client[3], direct[3]);

	*e = (*e & ~ARENA_PTE_PFN_MASK) | pfn << ARENA_PTE_PFN_SHIFT;
}

static void entry_absent(void)
{
	*an_entry(anon[3]) &= ~ARENA_PTE_PRESENT;
}

static void leaf_moved(void)
{
	*an_entry(leaf[3]) += UINT64_C(7) << ARENA_PTE_PFN_SHIFT;
}

static void entry_direct(void)
{
	uint64_t *e = an_entry(direct[3]), swap = e[0];

	e[0] = e[1];
	e[1] = swap;
}

static uint64_t *a_table_entry(unsigned level)
{
	return &pgtable_entries(victim(), 0)[arena_table_index(anon[3], level)];
}

static void table_wild(void)
{
	*a_table_entry(3) = pgtable_table_entry(200000);
}

static void table_loop(void)
{
	struct pte_ref ref;
	uint32_t t;

	pgtable_lookup(victim(), anon[3], &ref);
	t = victim()->tables[ref.table].parent;
	pgtable_entries(victim(), t)[7] = pgtable_table_entry(ref.table);
}

static void table_root(void)
{
	pgtable_entries(victim(), 0)[17] = pgtable_table_entry(0);
}

static void leaf_in_root(void)
{
	*a_table_entry(3) |= ARENA_PTE_HUGE;
}

static void record_state(void)
{
	victim()->record->state = 7;
}

static void record_id(void)
{
	victim()->record->id = mm_id(client[2]->mm);
}

static void record_uid(void)
{
	victim()->record->uid = 0;
}

static void record_domain(void)
{
	victim()->record->domain = domain_id(mm_domain(client[2]->mm));
}

static struct object_record *a_segment(unsigned i)
{
	return client[i]->mm->handles[handle[i] - 1].object->record;
}

static void segment_kind(void)
{
	a_segment(3)->kind = 9;
}

static void segment_name(void)
{
	a_segment(3)->name[0] ^= 1;
}

static void segment_uid(void)
{
	a_segment(3)->uid = 0;
}

static void segment_domain(void)
{
	a_segment(3)->domain = 1;
}

static void segment_twin(void)
{
	memcpy(&m.state.objects[100], a_segment(3), sizeof(struct object_record));
}

static void shared_segment(void)
{
	a_segment(0)->mode = 07777;
}

static void channel_garbage(void)
{
	uint8_t *at = (uint8_t *)victim()->channel;
	uint64_t i;

	/* Not what the test's own client reads. */
	for (i = 0; i < 128 * 1024; i++)
		at[i] = (uint8_t)prng_next(&rng);
	client[3]->acked = 0;
}

static void ids_again(void)
{
	m.state.header->next_mm = 1;
	m.state.header->next_object = 1;
}

#define VICTIM 8u
#define TWO 4u
#define SHARERS 3u
static const struct damage {
	const char *name;
	void (*fn)(void);
	unsigned must, may;
} damages[] = {
#define DAMAGE(fn, must, may)      \
	{                          \
#fn, fn, must, may \
	}
	DAMAGE(missing_mm, VICTIM, 0),
	DAMAGE(missing_channel, VICTIM, 0),
	DAMAGE(short_mm, VICTIM, 0),
	DAMAGE(empty_mm, VICTIM, 0),
	DAMAGE(short_channel, VICTIM, 0),
	DAMAGE(unsealed_mm, VICTIM, 0),
	DAMAGE(swapped_mm, VICTIM | TWO, 0),
	DAMAGE(swapped_channel, VICTIM | TWO, 0),
	DAMAGE(version, VICTIM, 0),
	DAMAGE(magic, VICTIM, 0),
	DAMAGE(window, VICTIM, 0),
	DAMAGE(layout, VICTIM, 0),
	DAMAGE(table_count, VICTIM, 0),
	DAMAGE(policy, VICTIM, 0),
	DAMAGE(policy_nodes, VICTIM, 0),
	DAMAGE(txn, VICTIM, 0),
	DAMAGE(slot_domain, VICTIM, 0),
	DAMAGE(slot_zero, VICTIM, 0),
	DAMAGE(handle_object, VICTIM, 0),
	DAMAGE(handle_far, VICTIM, 0),
	DAMAGE(vma_state, VICTIM, 0),
	DAMAGE(vma_gone, VICTIM, 0),
	DAMAGE(vma_overlap, VICTIM, 0),
	DAMAGE(vma_backwards, VICTIM, 0),
	DAMAGE(vma_object, VICTIM, 0),
	DAMAGE(vma_pgoff_flips, VICTIM, 0),
	DAMAGE(entry_of_another, VICTIM, 0),
	DAMAGE(entry_of_another_domain, VICTIM, 0),
	DAMAGE(entry_of_free_frame, VICTIM, 0),
	DAMAGE(entry_beyond, VICTIM, 0),
	DAMAGE(entry_bits, VICTIM, 0),
	DAMAGE(entry_slot, VICTIM, 0),
	DAMAGE(zeros_not_asked, VICTIM, 0),
	DAMAGE(zeros_slot, VICTIM, 0),
	DAMAGE(zeros_beyond, VICTIM, 0),
	DAMAGE(zeros_leaf_moved, VICTIM, 0),
	DAMAGE(zeros_of_segment, VICTIM, 0),
	DAMAGE(zeros_flag, VICTIM, 0),
	DAMAGE(pfn_map_other, VICTIM, 0),
	DAMAGE(pfn_map_beyond, VICTIM, 0),
	DAMAGE(pfn_in_anon, VICTIM, 0),
	DAMAGE(entry_absent, VICTIM, 0),
	DAMAGE(leaf_moved, VICTIM, 0),
	DAMAGE(entry_direct, VICTIM, 0),
	DAMAGE(table_wild, VICTIM, 0),
	DAMAGE(table_loop, VICTIM, 0),
	DAMAGE(table_root, VICTIM, 0),
	DAMAGE(leaf_in_root, VICTIM, 0),
	DAMAGE(record_state, VICTIM, 0),
	DAMAGE(record_id, VICTIM, 0),
	DAMAGE(record_uid, VICTIM, 0),
	DAMAGE(record_domain, VICTIM, 0),
	DAMAGE(segment_kind, VICTIM, 0),
	DAMAGE(segment_name, VICTIM, 0),
	DAMAGE(segment_uid, VICTIM, 0),
	DAMAGE(segment_domain, VICTIM, 0),
	DAMAGE(segment_twin, 0, 0),
	DAMAGE(shared_segment, SHARERS, 0),
	DAMAGE(ids_again, 0, 0),
};

static const struct damage *now;

static void one_damage(void)
{
	up();
	now->fn();
	check(now->must, now->may, true);
}

static void test_damages(void **state)
{
	unsigned deaths;

	(void)state;
	for (now = damages; now < damages + ARRAY_SIZE(damages); now++)
		if (!in_child(one_damage, &deaths))
			fail_msg("damage: %s", now->name);
}

static void channel_damage(void)
{
	up();
	channel_garbage();
	crash_recover();
	assert_false(lost[3]);
	client[3]->acked = mm_flush_posted(client[3]->mm) - 1;
	check_survivor(3);
	check_survivor(0);
	down();
}

static void test_channel(void **state)
{
	unsigned deaths;

	(void)state;
	assert_true(in_child(channel_damage, &deaths));
}

/* A lost client that is dead gives everything back, before and after other workers came. */
static void lost_and_dead(void)
{
	struct mm *mm;
	uint64_t before;

	up();
	magic();
	crash_recover();
	assert_true(lost[3]);
	mm = condemned(client[3]);
	assert_non_null(mm);
	assert_int_equal(mm_id(mm), client[3]->id);
	assert_string_equal(mm_comm(mm), "fake");
	assert_false(virt_flush_pending(m.virt) && !mm_flush_pending(client[0]->mm));
	before = phys_free_pages(m.phys);
	for (unsigned i = 0; i < 3; i++)
		client_ack_all(client[i]);
	assert_int_equal(phys_free_pages(m.phys), before);
	assert_null(mm_find_pid(m.virt, 103));
	crash_do_destroy(mm, NULL);
	assert_true(phys_free_pages(m.phys) >= before + ARENA_LEAF_PAGES + PAGES + 4);
	assert_true(virt_is_valid(m.virt));
	assert_null(mm_next_condemned(m.virt, NULL));
	crash_recover();
	assert_int_equal(crash.stats.lost_clients, 0);
	assert_int_equal(crash.stats.clients, 3);
	down();
}

static void test_lost_and_dead(void **state)
{
	unsigned deaths;

	(void)state;
	assert_true(in_child(lost_and_dead, &deaths));
}

/* ---- bits, at random --------------------------------------------------------------------------------- */

static uint64_t trial_seed;

static void flip(void *at, uint64_t size)
{
	uint64_t bit = prng_below(&rng, size * 8);

	((uint8_t *)at)[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void random_flips(void)
{
	unsigned n = 1 + (unsigned)prng_below(&rng, 3);
	unsigned may = VICTIM;
	struct mm *mm;

	rng.state = trial_seed;
	up();
	mm = victim();
	while (n--) {
		switch (prng_below(&rng, 8)) {
		case 0:
			flip(mm->header, 1024);
			break;
		case 1:
			flip(mm->records, mm->record_top * sizeof(*mm->records));
			break;
		case 2:
			flip(mm->slot_records, 4 * sizeof(*mm->slot_records));
			break;
		case 3:
			flip(mm->handle_records, 4 * sizeof(*mm->handle_records));
			break;
		case 4:
			flip(mm->record, sizeof(*mm->record));
			break;
		case 5:
			flip(a_segment(3), sizeof(struct object_record));
			break;
		case 6:
			flip(pgtable_entries(mm, (uint32_t)prng_below(&rng, mm->header->nr_tables)),
			     ARENA_PAGE_SIZE);
			break;
		default:
			flip(an_entry(anon[3] + PAGE(prng_below(&rng, PAGES))), 8);
		}
	}
	/* The victim's own frames and bytes may be anything; nobody else's. */
	crash_recover();
	for (unsigned i = 0; i < NR; i++) {
		if (lost[i] && !(may & 1u << i))
			fail_msg("client %u is lost", i);
		if (!lost[i] && i != 3)
			check_survivor(i);
	}
	crash_recover();
	down();
}

static void test_flips(void **state)
{
	const char *length = getenv("ARENA_TEST_OPS");
	unsigned long trials = length ? strtoul(length, NULL, 0) / 50 : TEST_SANITIZED ? 12 : 36;
	uint64_t seed = test_seed();
	unsigned deaths;

	(void)state;
	for (unsigned long i = 0; i < trials; i++) {
		trial_seed = seed + i;
		if (!in_child(random_flips, &deaths))
			fail_msg("ARENA_TEST_SEED=%lu", (unsigned long)trial_seed);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_damages),
		cmocka_unit_test(test_channel),
		cmocka_unit_test(test_lost_and_dead),
		cmocka_unit_test(test_flips),
	};

	const char *one = getenv("ARENA_TEST_DAMAGE");

	log_set_level(getenv("ARENA_TEST_LOG") ? LOG_LEVEL_INFO : LOG_LEVEL_ERR);
	for (now = damages; one && now < damages + ARRAY_SIZE(damages); now++) {
		if (strcmp(one, now->name))
			continue;
		one_damage();
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
