/* SPDX-License-Identifier: MIT */
/*
 * The software TLB over a page table made by hand: walk, run, refill and flush against a model
 * that knows one entry per page and looks at one page at a time. Whether a page is really mapped
 * is asked of the kernel: write(2) from an unmapped page is EFAULT.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/os.h"
#include "base/prng.h"
#include "base/util.h"
#include "libclient/tlb.h"

#define NR_LEAVES 48u /* of the window, looked at: 24 each side of a GiB boundary */
#define NR_PAGES (NR_LEAVES * ARENA_LEAF_PAGES)
#define FIRST_LEAF (512u - NR_LEAVES / 2)
#define ARENA_LEAVES 16u
#define ARENA_FRAMES (ARENA_LEAVES * ARENA_LEAF_PAGES)
#define NR_TABLES 256u
#define WINDOW_SIZE (UINT64_C(4) << 30)

struct fixture {
	struct tlb tlb;
	uint64_t *tables;
	uint32_t next_table;
	int arena_fd, pipe[2];
	/* the model, per page of the region */
	uint64_t pte[NR_PAGES]; /* 0: none; pfn is that of the page */
	bool leaf[NR_PAGES];
	bool mapped[NR_PAGES], writable[NR_PAGES], executable[NR_PAGES];
	unsigned taken_first, taken_nr; /* the pages of the last tlb_take_writing() */
};

static struct fixture *f;
static struct prng prng = {1};

static uint64_t address_of(unsigned page)
{
	return f->tlb.base + FIRST_LEAF * ARENA_LEAF_SIZE + page * ARENA_PAGE_SIZE;
}

static uint64_t window_page(unsigned page)
{
	return (uint64_t)FIRST_LEAF * ARENA_LEAF_PAGES + page;
}

static uint64_t entry(uint64_t pfn, uint64_t bits)
{
	return (pfn << ARENA_PTE_PFN_SHIFT) | bits | ARENA_PTE_PRESENT;
}

/* The table that holds `addr`'s entry at `level`, made as needed. */
static uint64_t *table_of(uint64_t addr, unsigned level)
{
	uint64_t *table = f->tables;

	for (unsigned l = ARENA_TABLE_LEVELS - 1; l > level; l--) {
		uint64_t *e = &table[arena_table_index(addr, l)];

		if (!*e)
			*e = entry(f->next_table++, 0);
		assert_true(f->next_table <= NR_TABLES);
		table = f->tables + arena_pte_pfn(*e) * ARENA_PTRS_PER_TABLE;
	}
	return table;
}

static void setup_shared(void)
{
	int mm_fd = os_memfd("mm", ARENA_MM_TABLES_OFFSET + NR_TABLES * 4096);
	int channel_fd = os_memfd("channel", ARENA_CHANNEL_BITS + NR_TABLES * 128);
	struct tlb *t = &f->tlb;
	void *p;

	assert_int_equal(os_map(mm_fd, 0, ARENA_MM_TABLES_OFFSET + NR_TABLES * 4096,
				OS_MAP_READ | OS_MAP_WRITE, &p),
			 0);
	t->header = p;
	((struct arena_mm_header *)p)->nr_tables = NR_TABLES;
	f->tables = (uint64_t *)((char *)p + ARENA_MM_TABLES_OFFSET);
	t->tables = f->tables;
	t->nr_tables = NR_TABLES;
	f->next_table = 1;
	assert_int_equal(os_map(channel_fd, 0, ARENA_CHANNEL_BITS + NR_TABLES * 128,
				OS_MAP_READ | OS_MAP_WRITE, &p),
			 0);
	t->channel = p;
	t->ring = (struct arena_flush_entry *)((char *)p + ARENA_CHANNEL_FLUSH);
	t->bits = (struct arena_table_bits *)((char *)p + ARENA_CHANNEL_BITS);
	close(mm_fd);
	close(channel_fd);
}

/* Each frame's first word is its pfn. */
static void setup_arena(void)
{
	void *p;

	f->arena_fd = os_memfd("arena", ARENA_FRAMES * ARENA_PAGE_SIZE);
	assert_true(f->arena_fd >= 0);
	assert_int_equal(os_map(f->arena_fd, 0, ARENA_FRAMES * ARENA_PAGE_SIZE,
				OS_MAP_READ | OS_MAP_WRITE, &p),
			 0);
	for (uint64_t pfn = 0; pfn < ARENA_FRAMES; pfn++)
		*(uint64_t *)((char *)p + pfn * ARENA_PAGE_SIZE) = pfn;
	os_unmap(p, ARENA_FRAMES * ARENA_PAGE_SIZE);
	assert_int_equal(tlb_slot_set(&f->tlb, 0, f->arena_fd), 0);
	assert_int_equal(tlb_slot_set(&f->tlb, 3000, dup(f->arena_fd)), 0);
	assert_int_equal(tlb_slot_set(&f->tlb, 3000, dup(f->arena_fd)), 0); /* in its place */
	assert_int_equal(tlb_slot_fd(&f->tlb, 1), -1);
	assert_int_equal(tlb_slot_fd(&f->tlb, ARENA_MAX_SLOTS), -1);
}

static int setup(void **state)
{
	void *p;

	(void)state;
	f = calloc(1, sizeof(*f));
	assert_non_null(f);
	assert_int_equal(os_reserve((void *)ARENA_WINDOW_BASE, WINDOW_SIZE, false, &p), 0);
	f->tlb.base = (uintptr_t)p;
	f->tlb.size = WINDOW_SIZE;
	f->tlb.max_maps = 40000;
	assert_int_equal(tlb_notes_init(&f->tlb), 0);
	setup_shared();
	setup_arena();
	assert_int_equal(pipe(f->pipe), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	os_unmap((void *)(uintptr_t)f->tlb.base, f->tlb.size);
	tlb_notes_exit(&f->tlb);
	tlb_slots_close(&f->tlb);
	os_unmap((void *)f->tlb.header, ARENA_MM_TABLES_OFFSET + NR_TABLES * 4096);
	os_unmap(f->tlb.channel, ARENA_CHANNEL_BITS + NR_TABLES * 128);
	close(f->pipe[0]);
	close(f->pipe[1]);
	free(f);
	return 0;
}

/* ---- the model ---- */

static uint64_t random_bits(void)
{
	static const uint64_t perms[] = {
		ARENA_PTE_READ,
		ARENA_PTE_READ | ARENA_PTE_WRITE,
		ARENA_PTE_READ | ARENA_PTE_WRITE,
		ARENA_PTE_READ | ARENA_PTE_EXEC,
		0,
	};
	uint64_t bits = perms[prng_below(&prng, ARRAY_SIZE(perms))];

	if (prng_below(&prng, 4) == 0)
		bits |= ARENA_PTE_HOLE;
	if (prng_below(&prng, 8) == 0)
		bits |= UINT64_C(3000) << ARENA_PTE_SLOT_SHIFT;
	return bits;
}

static void set_page(unsigned page, uint64_t pte)
{
	uint64_t addr = address_of(page);

	table_of(addr, 0)[arena_table_index(addr, 0)] = pte;
	f->pte[page] = pte;
	f->leaf[page] = false;
}

static void set_leaf(unsigned leaf, uint64_t pte)
{
	unsigned page = leaf * ARENA_LEAF_PAGES;
	uint64_t addr = address_of(page);

	table_of(addr, 1)[arena_table_index(addr, 1)] = pte;
	for (unsigned i = 0; i < ARENA_LEAF_PAGES; i++) {
		f->pte[page + i] = pte ? pte + ((uint64_t)i << ARENA_PTE_PFN_SHIFT) : 0;
		f->leaf[page + i] = pte != 0;
	}
}

static void random_pages(unsigned leaf)
{
	uint64_t pfn = prng_below(&prng, ARENA_FRAMES), bits = random_bits();

	for (unsigned i = 0; i < ARENA_LEAF_PAGES; i++, pfn++) {
		if (prng_below(&prng, 24) == 0) {
			pfn = prng_below(&prng, ARENA_FRAMES);
			bits = random_bits();
		}
		if (prng_below(&prng, 32) == 0 || pfn >= ARENA_FRAMES)
			continue;
		set_page(leaf * ARENA_LEAF_PAGES + i,
			 entry(pfn, bits | (prng_below(&prng, 16) ? 0 : ARENA_PTE_AHEAD)));
	}
}

static void random_tables(void)
{
	uint64_t frame = 0, bits = random_bits();

	for (unsigned leaf = 0; leaf < NR_LEAVES; leaf++) {
		unsigned what = (unsigned)prng_below(&prng, 8);

		if (what == 0)
			continue;
		if (what < 3) {
			random_pages(leaf);
			continue;
		}
		if (frame >= ARENA_LEAVES || what == 3) {
			frame = prng_below(&prng, ARENA_LEAVES);
			bits = random_bits();
		}
		set_leaf(leaf, entry(frame++ * ARENA_LEAF_PAGES, bits | ARENA_PTE_HUGE));
	}
}

static bool model_good(unsigned page)
{
	return f->mapped[page] && (!(f->pte[page] & ARENA_PTE_WRITE) || f->writable[page]) &&
	       (!(f->pte[page] & ARENA_PTE_EXEC) || f->executable[page]);
}

static bool model_good_unit(unsigned page, unsigned unit)
{
	for (unsigned i = 0; i < unit; i++)
		if (!model_good(page + i))
			return false;
	return true;
}

static bool model_follows(unsigned a, unsigned b, unsigned unit)
{
	uint64_t ignore = ARENA_PTE_AHEAD | ARENA_PTE_PFN_MASK;

	return f->pte[a] && f->pte[b] && f->leaf[a] == f->leaf[b] &&
	       arena_pte_pfn(f->pte[b]) == arena_pte_pfn(f->pte[a]) + unit &&
	       (f->pte[a] & ~ignore) == (f->pte[b] & ~ignore);
}

/* The run around a present page, in pages of the region. */
static void model_run(unsigned page, unsigned *first, unsigned *end)
{
	unsigned unit = f->leaf[page] ? ARENA_LEAF_PAGES : 1;
	unsigned table = f->leaf[page] ? 512 * ARENA_LEAF_PAGES : ARENA_LEAF_PAGES;
	unsigned most = tlb_is_writable_hole(f->pte[page]) ? TLB_HOLE_RUN : TLB_LEAF_RUN;
	unsigned limit = f->leaf[page] ? most * ARENA_LEAF_PAGES : ARENA_LEAF_PAGES;
	unsigned shift = FIRST_LEAF * ARENA_LEAF_PAGES; /* region page 0 in the window */

	*first = page / unit * unit;
	*end = *first + unit;
	while (*end < NR_PAGES && (*end + shift) % table && *end - *first < limit &&
	       model_follows(*end - unit, *end, unit) && !model_good_unit(*end, unit))
		*end += unit;
	while (*first && (*first + shift) % table && *end - *first < limit &&
	       model_follows(*first - unit, *first, unit) && !model_good_unit(*first - unit, unit))
		*first -= unit;
}

static void model_map(unsigned first, unsigned end)
{
	for (unsigned i = first; i < end; i++) {
		f->mapped[i] = true;
		f->writable[i] = f->pte[first] & ARENA_PTE_WRITE;
		f->executable[i] = f->pte[first] & ARENA_PTE_EXEC;
	}
}

/* ---- what the kernel says ---- */

static void check_page(unsigned page)
{
	void *addr = (void *)(uintptr_t)address_of(page);
	uint64_t pfn = arena_pte_pfn(f->pte[page]), got = 0;
	bool readable = f->mapped[page] && (f->pte[page] & ARENA_PTE_PERM);

	if (readable) {
		assert_int_equal(write(f->pipe[1], addr, 8), 8);
		assert_int_equal(read(f->pipe[0], &got, 8), 8);
		assert_int_equal(got, pfn);
	} else {
		assert_int_equal(write(f->pipe[1], addr, 8), -1);
		assert_int_equal(errno, EFAULT);
	}
	/* The same bytes again, so that a write changes nothing. */
	if (f->mapped[page] && f->writable[page])
		assert_int_equal(pread(f->arena_fd, addr, 8, (off_t)(pfn << ARENA_PAGE_SHIFT)), 8);
	else
		assert_int_equal(pread(f->arena_fd, addr, 8, 0), -1);
}

static void check_notes(void)
{
	for (unsigned i = 0; i < NR_PAGES; i++)
		assert_int_equal(tlb_note_is_mapped(&f->tlb, window_page(i)), f->mapped[i]);
}

static uint64_t kernel_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	uint64_t start, end, n = 0;
	char line[512];

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2 &&
		    start >= f->tlb.base && end <= f->tlb.base + f->tlb.size)
			n++;
	fclose(maps);
	return n;
}

/* ---- walk and run ---- */

static void walk_finds_what_the_model_has(void **state)
{
	(void)state;
	for (int round = 0; round < 20; round++) {
		if (round) {
			teardown(NULL);
			setup(NULL);
		}
		random_tables();
		for (unsigned i = 0; i < NR_PAGES; i++) {
			uint64_t addr = address_of(i) + prng_below(&prng, 4096);
			struct tlb_walk w;

			assert_int_equal(tlb_walk(&f->tlb, addr, &w), f->pte[i] != 0);
			if (!f->pte[i]) {
				assert_true(w.pte == 0);
				continue;
			}
			assert_int_equal(w.level, f->leaf[i] ? 1 : 0);
			assert_true(arena_pte_pfn(w.pte) + (f->leaf[i] ? i % 512 : 0) ==
				    arena_pte_pfn(f->pte[i]));
		}
	}
}

static void runs_are_the_models(void **state)
{
	(void)state;
	for (int round = 0; round < 10; round++) {
		teardown(NULL);
		setup(NULL);
		random_tables();
		for (unsigned i = 0; i < NR_PAGES; i++) {
			struct tlb_walk w;
			struct tlb_run run;
			unsigned first, end, ahead = 0;

			if (!tlb_walk(&f->tlb, address_of(i), &w))
				continue;
			tlb_find_run(&f->tlb, address_of(i), &w, &run);
			model_run(i, &first, &end);
			assert_true(run.start == address_of(first));
			assert_true(run.end == address_of(first) + (end - first) * ARENA_PAGE_SIZE);
			assert_true(arena_pte_pfn(run.pte) == arena_pte_pfn(f->pte[first]));
			assert_int_equal(run.nr, (end - first) / (f->leaf[i] ? 512 : 1));
			for (unsigned p = first; p < end; p += f->leaf[i] ? 512 : 1)
				ahead += !!(f->pte[p] & ARENA_PTE_AHEAD);
			assert_int_equal(run.nr_ahead, ahead);
		}
	}
}

static void bad_tables_are_not_followed(void **state)
{
	uint64_t addr = address_of(0);
	struct tlb_walk w;

	(void)state;
	set_leaf(0, entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ));
	assert_true(tlb_walk(&f->tlb, addr, &w));
	/* A table number beyond the file. */
	table_of(addr, 1)[arena_table_index(addr, 1)] = entry(NR_TABLES, 0);
	assert_false(tlb_walk(&f->tlb, addr, &w));
	/* HUGE where it does not belong. */
	set_leaf(0, 0);
	set_page(0, entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ));
	assert_false(tlb_walk(&f->tlb, addr, &w));
	set_page(0, 0);
	table_of(addr, 2)[arena_table_index(addr, 2)] = entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ);
	assert_false(tlb_walk(&f->tlb, addr, &w));
	assert_int_equal(tlb_refill(&f->tlb, addr, PROT_READ, NULL), TLB_MISS);
	/* A slot without a descriptor. */
	table_of(addr, 2)[arena_table_index(addr, 2)] = 0;
	set_leaf(0,
		 entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ | UINT64_C(9) << ARENA_PTE_SLOT_SHIFT));
	assert_int_equal(tlb_refill(&f->tlb, addr, PROT_READ, NULL), -EBADF);
}

/* ---- refill and flush ---- */

static void random_refill(void)
{
	static const unsigned accesses[] = {PROT_READ, PROT_WRITE, PROT_EXEC};
	unsigned page = (unsigned)prng_below(&prng, NR_PAGES), first, end;
	unsigned access = accesses[prng_below(&prng, 10) < 9 ? page % 2 : 2];
	uint64_t mask;
	int r;

	mask = tlb_lock(&f->tlb, false);
	r = tlb_refill(&f->tlb, address_of(page), access, NULL);
	tlb_unlock(&f->tlb, mask, false);
	if (!f->pte[page] || !tlb_permits(f->pte[page], access)) {
		assert_int_equal(r, TLB_MISS);
		return;
	}
	assert_int_equal(r, TLB_DONE);
	model_run(page, &first, &end);
	model_map(first, end);
	check_page(page);
	check_page(first);
	check_page(end - 1);
	if (first)
		check_page(first - 1);
	if (end < NR_PAGES)
		check_page(end);
}

static void post(uint64_t seq, uint64_t start, uint64_t end, uint32_t op)
{
	struct arena_flush_entry *e = &f->tlb.ring[seq % ARENA_FLUSH_ENTRIES];

	e->start = start;
	e->end = end;
	e->op = op;
	store_release(&e->seq, seq);
	store_release(&f->tlb.channel->flush_head, seq);
}

static void flush_now(void)
{
	uint64_t seq = tlb_flush(&f->tlb, false);

	assert_true(seq == f->tlb.channel->flush_head);
	tlb_ack(&f->tlb, seq);
	assert_true(f->tlb.channel->flush_ack == seq);
}

static void random_range(unsigned *first, unsigned *nr)
{
	*first = (unsigned)prng_below(&prng, NR_PAGES);
	*nr = (unsigned)prng_below(&prng, prng_below(&prng, 2) ? 40 : 3000) + 1;
	*nr = MIN(*nr, NR_PAGES - *first);
}

static void check_range(unsigned first, unsigned nr)
{
	check_page(first);
	check_page(first + nr / 2);
	check_page(first + nr - 1);
	if (first)
		check_page(first - 1);
	if (first + nr < NR_PAGES)
		check_page(first + nr);
}

/* What a caller does before the flush comes; it is kept for a flush of the same. */
static void random_take_writing(void)
{
	unsigned first, nr;

	random_range(&first, &nr);
	tlb_take_writing(&f->tlb, address_of(first), address_of(first + nr));
	memset(f->writable + first, 0, nr * sizeof(f->writable[0]));
	f->taken_first = first;
	f->taken_nr = nr;
	check_range(first, nr);
}

/* Take a range, or its write right, and sometimes the table with it. */
static void random_flush(void)
{
	unsigned first, nr;
	bool unmap = prng_below(&prng, 2);

	random_range(&first, &nr);
	if (f->taken_nr && prng_below(&prng, 2)) {
		first = f->taken_first;
		nr = f->taken_nr;
		unmap = false;
	}
	post(f->tlb.channel->flush_head + 1, address_of(first),
	     address_of(first) + nr * ARENA_PAGE_SIZE,
	     unmap ? ARENA_FLUSH_UNMAP : ARENA_FLUSH_WRPROTECT);
	flush_now();
	for (unsigned i = first; i < first + nr; i++) {
		f->writable[i] = false;
		if (unmap)
			f->mapped[i] = f->executable[i] = false;
	}
	check_range(first, nr);
}

static void refills_and_flushes(void **state)
{
	uint64_t maps;

	(void)state;
	random_tables();
	for (int i = 0; i < 4000; i++) {
		if (prng_below(&prng, 3))
			random_refill();
		else if (prng_below(&prng, 4))
			random_flush();
		else
			random_take_writing();
		if (i % 100 == 0) {
			check_notes();
			maps = kernel_maps();
			assert_true(tlb_nr_maps(&f->tlb) >= maps);
		}
	}
	assert_int_equal(f->tlb.channel->evictions, 0);
	post(f->tlb.channel->flush_head + 1, 0, UINT64_MAX, ARENA_FLUSH_UNMAP);
	flush_now();
	memset(f->mapped, 0, sizeof(f->mapped));
	check_notes();
	assert_int_equal(kernel_maps(), 1);
	assert_int_equal(tlb_nr_maps(&f->tlb), 1);
}

/* The table that a mapping came from may be gone, and another in its place, before the flush. */
static void flush_does_not_need_the_old_table(void **state)
{
	uint64_t addr = address_of(0), *pmd;

	(void)state;
	set_page(0, entry(5, ARENA_PTE_READ | ARENA_PTE_WRITE));
	assert_int_equal(tlb_refill(&f->tlb, addr, PROT_READ, NULL), TLB_DONE);
	f->mapped[0] = f->writable[0] = true;
	check_page(0);
	pmd = table_of(addr, 1);
	pmd[arena_table_index(addr, 1)] = 0;
	set_page(0, entry(6, ARENA_PTE_READ | ARENA_PTE_WRITE));
	post(1, addr, addr + ARENA_PAGE_SIZE, ARENA_FLUSH_UNMAP);
	flush_now();
	f->mapped[0] = f->writable[0] = false;
	check_page(0);
	assert_int_equal(tlb_refill(&f->tlb, addr, PROT_READ, NULL), TLB_DONE);
	f->mapped[0] = f->writable[0] = true;
	check_page(0);
}

static void overtaken_ring_drops_everything(void **state)
{
	(void)state;
	random_tables();
	for (unsigned i = 0; i < NR_PAGES; i++)
		if (f->pte[i])
			f->tlb.bits[1].accessed[0] = 1;
	set_leaf(0, entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ));
	set_leaf(40, entry(512, ARENA_PTE_HUGE | ARENA_PTE_READ));
	assert_int_equal(tlb_refill(&f->tlb, address_of(0), PROT_READ, NULL), TLB_DONE);
	assert_int_equal(tlb_refill(&f->tlb, address_of(40 * 512), PROT_READ, NULL), TLB_DONE);
	assert_true(tlb_note_is_mapped(&f->tlb, window_page(0)));
	/* As many as the ring can tell apart for certain: each is applied by itself. */
	for (uint64_t seq = 1; seq <= ARENA_FLUSH_ENTRIES - 1; seq++)
		post(seq, address_of(3 * 512), address_of(3 * 512) + ARENA_PAGE_SIZE,
		     ARENA_FLUSH_UNMAP);
	flush_now();
	assert_true(tlb_note_is_mapped(&f->tlb, window_page(0)));
	assert_true(f->tlb.channel->flushes == ARENA_FLUSH_ENTRIES - 1);
	for (uint64_t i = 0; i <= ARENA_FLUSH_ENTRIES; i++)
		post(f->tlb.channel->flush_head + 1, address_of(3 * 512),
		     address_of(3 * 512) + ARENA_PAGE_SIZE, ARENA_FLUSH_UNMAP);
	flush_now();
	check_notes();
	assert_int_equal(kernel_maps(), 1);
	assert_true(f->tlb.bits[1].accessed[0] == 0);
}

static void flush_all_and_unknown_operations(void **state)
{
	(void)state;
	for (uint32_t op = ARENA_FLUSH_ALL; op <= ARENA_FLUSH_ALL + 1; op++) {
		set_leaf(0, entry(0, ARENA_PTE_HUGE | ARENA_PTE_READ));
		assert_int_equal(tlb_refill(&f->tlb, address_of(0), PROT_READ, NULL), TLB_DONE);
		assert_int_not_equal(kernel_maps(), 1);
		post(f->tlb.channel->flush_head + 1, 0, 0, op);
		flush_now();
		assert_int_equal(kernel_maps(), 1);
	}
	/* The acknowledgement never goes back. */
	tlb_ack(&f->tlb, 0);
	assert_true(f->tlb.channel->flush_ack == f->tlb.channel->flush_head);
}

static void accessed_and_dirty_bits(void **state)
{
	uint32_t table;
	uint64_t addr = address_of(512);
	struct tlb_walk w;

	(void)state;
	for (unsigned i = 60; i < 70; i++)
		set_page(512 + i, entry(100 + i, ARENA_PTE_READ | ARENA_PTE_WRITE));
	set_page(512 + 200, entry(7, ARENA_PTE_READ));
	assert_true(tlb_walk(&f->tlb, addr + 65 * 4096, &w));
	table = w.table;
	assert_int_equal(tlb_refill(&f->tlb, addr + 65 * 4096, PROT_READ, NULL), TLB_DONE);
	assert_int_equal(tlb_refill(&f->tlb, addr + 200 * 4096, PROT_READ, NULL), TLB_DONE);
	assert_true(f->tlb.bits[table].accessed[0] == UINT64_C(0xf) << 60);
	assert_true(f->tlb.bits[table].accessed[1] == 0x3f);
	assert_true(f->tlb.bits[table].accessed[3] == 1 << 8);
	assert_true(f->tlb.bits[table].dirty[1] == 0x3f);
	assert_true(f->tlb.bits[table].dirty[3] == 0);
	post(1, addr, addr + 62 * 4096, ARENA_FLUSH_UNMAP);
	flush_now();
	assert_true(f->tlb.bits[table].accessed[0] == UINT64_C(3) << 62);
	assert_true(f->tlb.bits[table].accessed[1] == 0x3f);
}

static void mappings_are_counted_and_evicted(void **state)
{
	(void)state;
	f->tlb.max_maps = 60;
	for (unsigned i = 0; i < ARENA_LEAF_PAGES; i++)
		set_page(i, entry((i * 37) % ARENA_FRAMES, ARENA_PTE_READ));
	for (unsigned i = 0; i < ARENA_LEAF_PAGES; i += 2) {
		uint64_t word;

		assert_int_equal(tlb_refill(&f->tlb, address_of(i), PROT_READ, NULL), TLB_DONE);
		memcpy(&word, (void *)(uintptr_t)address_of(i), sizeof(word));
		assert_true(word == (i * 37) % ARENA_FRAMES);
		assert_true(kernel_maps() <= 60);
		assert_true(tlb_nr_maps(&f->tlb) == kernel_maps());
	}
	assert_true(f->tlb.channel->evictions >= 4);
}

static void neighbours_join(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 100; i++)
		set_page(i, entry(i, ARENA_PTE_READ | ARENA_PTE_WRITE));
	assert_int_equal(tlb_refill(&f->tlb, address_of(50), PROT_WRITE, NULL), TLB_DONE);
	assert_int_equal(kernel_maps(), 3);
	assert_int_equal(tlb_nr_maps(&f->tlb), 3);
	post(1, address_of(20), address_of(30), ARENA_FLUSH_UNMAP);
	flush_now();
	assert_int_equal(kernel_maps(), 5);
	assert_int_equal(tlb_nr_maps(&f->tlb), 5);
	assert_int_equal(tlb_refill(&f->tlb, address_of(25), PROT_WRITE, NULL), TLB_DONE);
	assert_int_equal(kernel_maps(), 3);
	assert_int_equal(tlb_nr_maps(&f->tlb), 3);
}

static void ranges_are_refilled_eagerly(void **state)
{
	unsigned mapped = 0;

	(void)state;
	random_tables();
	tlb_refill_range(&f->tlb, address_of(0), address_of(NR_PAGES), PROT_WRITE);
	for (unsigned i = 0; i < NR_PAGES; i++) {
		if (tlb_permits(f->pte[i], PROT_WRITE)) {
			assert_true(tlb_note_covers(&f->tlb, window_page(i), 1, ARENA_PTE_WRITE));
			f->mapped[i] = f->writable[i] = true;
			mapped++;
		}
	}
	assert_true(mapped > 0);
	check_notes();
	for (unsigned i = 0; i < NR_PAGES; i += 17)
		check_page(i);
}

/* ---- leaves that are holes ---- */

#define HOLES_SLOT UINT64_C(7)
#define FIRST_HOLE (NR_LEAVES / 2) /* the first of the second GiB, so all are in one table */
#define NR_HOLES (NR_LEAVES / 2)

static int map_holes(uint64_t bits)
{
	int fd = os_memfd("holes", NR_HOLES * ARENA_LEAF_SIZE);

	assert_int_equal(tlb_slot_set(&f->tlb, HOLES_SLOT, fd), 0);
	for (unsigned i = 0; i < NR_HOLES; i++)
		set_leaf(FIRST_HOLE + i, entry((uint64_t)i * ARENA_LEAF_PAGES,
					       bits | ARENA_PTE_HUGE | ARENA_PTE_HOLE |
						       (HOLES_SLOT << ARENA_PTE_SLOT_SHIFT)));
	return fd;
}

static uint64_t leaves_backed(int fd)
{
	uint64_t bytes = 0;

	assert_int_equal(os_file_backed(fd, &bytes), 0);
	return bytes / ARENA_LEAF_SIZE;
}

static struct tlb_span refill_hole(unsigned leaf, unsigned access)
{
	struct tlb_span holes = {0};
	uint64_t mask = tlb_lock(&f->tlb, false);

	assert_int_equal(
		tlb_refill(&f->tlb, address_of(leaf * ARENA_LEAF_PAGES) + 5000, access, &holes),
		TLB_DONE);
	tlb_unlock(&f->tlb, mask, false);
	return holes;
}

/* So many from the address on: not all that could be mapped, and not what lies before it. */
static void holes_are_backed_in_bounded_runs(void **state)
{
	unsigned leaf = FIRST_HOLE + 2;
	int fd = map_holes(ARENA_PTE_READ | ARENA_PTE_WRITE);
	struct tlb_span holes;

	(void)state;
	holes = refill_hole(leaf, PROT_WRITE);
	assert_true(holes.start == address_of(leaf * ARENA_LEAF_PAGES));
	assert_true(holes.end == holes.start + TLB_HOLE_RUN * ARENA_LEAF_SIZE);
	assert_int_equal(leaves_backed(fd), 0);
	tlb_back_holes(holes);
	assert_int_equal(leaves_backed(fd), TLB_HOLE_RUN);
	holes = refill_hole(leaf - 1, PROT_READ);
	assert_true(holes.end - holes.start == ARENA_LEAF_SIZE);
	tlb_back_holes(holes); /* nothing to save with one */
	assert_int_equal(leaves_backed(fd), TLB_HOLE_RUN);
	holes = refill_hole(leaf + TLB_HOLE_RUN, PROT_WRITE);
	assert_true(holes.end == address_of(NR_PAGES));
}

static void holes_that_are_gone_meanwhile(void **state)
{
	int fd = map_holes(ARENA_PTE_READ | ARENA_PTE_WRITE);
	struct tlb_span holes = refill_hole(FIRST_HOLE, PROT_WRITE);

	(void)state;
	post(1, holes.start, holes.end, ARENA_FLUSH_UNMAP);
	flush_now();
	tlb_back_holes(holes);
	assert_int_equal(leaves_backed(fd), 0);
	check_page(FIRST_HOLE * ARENA_LEAF_PAGES);
	check_notes();
}

static void holes_not_to_be_written_are_left_alone(void **state)
{
	int fd = map_holes(ARENA_PTE_READ);
	struct tlb_span holes = refill_hole(FIRST_HOLE, PROT_READ);

	(void)state;
	assert_true(holes.start == holes.end);
	tlb_back_holes(holes);
	assert_int_equal(leaves_backed(fd), 0);
	assert_true(tlb_note_is_mapped(&f->tlb, window_page(NR_PAGES - 1)));
}

#define TLB_TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

/* ---- the program closes descriptors that are not its own ---- */

static int refill_result(unsigned page)
{
	uint64_t mask = tlb_lock(&f->tlb, false);
	int r = tlb_refill(&f->tlb, address_of(page), PROT_READ, NULL);

	tlb_unlock(&f->tlb, mask, false);
	return r;
}

/* Another file under the number of an arena file is neither mapped nor closed. */
static void a_number_is_another_files(void **state)
{
	int number, other = os_memfd("other", ARENA_FRAMES * ARENA_PAGE_SIZE);
	struct stat st;

	(void)state;
	number = map_holes(ARENA_PTE_READ);
	assert_int_equal(dup3(other, number, O_CLOEXEC), number);
	assert_int_equal(refill_result(FIRST_HOLE * ARENA_LEAF_PAGES), -EBADF);
	assert_int_equal(tlb_slot_set(&f->tlb, HOLES_SLOT, os_memfd("holes", 4096)), 0);
	assert_int_equal(fstat(number, &st), 0);
	close(number);
	close(other);
}

/* The file comes again under the number that it had, which was free. */
static void a_number_comes_again(void **state)
{
	int number = map_holes(ARENA_PTE_READ), again = dup(number), left;

	(void)state;
	assert_int_equal(tlb_slot_replace(&f->tlb, HOLES_SLOT, again), again);
	close(number);
	assert_int_equal(refill_result(FIRST_HOLE * ARENA_LEAF_PAGES), -EBADF);
	assert_int_equal(dup2(again, number), number);
	left = tlb_slot_replace(&f->tlb, HOLES_SLOT, number);
	assert_int_equal(left, -1);
	assert_int_equal(tlb_slot_fd(&f->tlb, HOLES_SLOT), number);
	close(again);
	assert_int_equal(refill_result(FIRST_HOLE * ARENA_LEAF_PAGES), TLB_DONE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TLB_TEST(walk_finds_what_the_model_has),
		TLB_TEST(runs_are_the_models),
		TLB_TEST(bad_tables_are_not_followed),
		TLB_TEST(refills_and_flushes),
		TLB_TEST(flush_does_not_need_the_old_table),
		TLB_TEST(overtaken_ring_drops_everything),
		TLB_TEST(flush_all_and_unknown_operations),
		TLB_TEST(accessed_and_dirty_bits),
		TLB_TEST(mappings_are_counted_and_evicted),
		TLB_TEST(neighbours_join),
		TLB_TEST(ranges_are_refilled_eagerly),
		TLB_TEST(holes_are_backed_in_bounded_runs),
		TLB_TEST(holes_that_are_gone_meanwhile),
		TLB_TEST(holes_not_to_be_written_are_left_alone),
		TLB_TEST(a_number_is_another_files),
		TLB_TEST(a_number_comes_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
