/* SPDX-License-Identifier: MIT */
/*
 * walk.c - the page table's walk and the run that one mmap can map.
 *
 * Called under the tlb's lock: a table that is taken out of the tree stays what it was until this
 * client has acknowledged the flush, which needs the lock. The daemon changes entries with
 * single stores at any time, so each is read once.
 */
#include <sys/mman.h>

#include "base/util.h"
#include "libclient/tlb.h"

/* Entries of a run are alike in these. */
#define RUN_KEY                                                                 \
	(ARENA_PTE_PRESENT | ARENA_PTE_PERM | ARENA_PTE_HUGE | ARENA_PTE_HOLE | \
	 ~((UINT64_C(1) << ARENA_PTE_SLOT_SHIFT) - 1))

static uint64_t read_entry(const struct tlb *t, uint32_t table, unsigned index)
{
	return load_acquire(&t->tables[(uint64_t)table * ARENA_PTRS_PER_TABLE + index]);
}

static bool mappable(uint64_t pte, unsigned level)
{
	return (pte & ARENA_PTE_PRESENT) && (level == 1) == !!(pte & ARENA_PTE_HUGE);
}

bool tlb_walk(const struct tlb *t, uint64_t addr, struct tlb_walk *w)
{
	uint64_t pte;

	w->table = 0;
	w->level = ARENA_TABLE_LEVELS - 1;
	for (;;) {
		w->index = arena_table_index(addr, w->level);
		pte = read_entry(t, w->table, w->index);
		if (!(pte & ARENA_PTE_PRESENT) || w->level == 0 || (pte & ARENA_PTE_HUGE))
			break;
		if (arena_pte_pfn(pte) >= t->nr_tables) {
			pte = 0;
			break;
		}
		w->table = (uint32_t)arena_pte_pfn(pte);
		w->level--;
	}
	w->pte = w->level <= 1 && mappable(pte, w->level) ? pte : 0;
	return w->pte;
}

bool tlb_permits(uint64_t pte, unsigned prot)
{
	uint64_t need = 0;

	if (prot & PROT_READ)
		need |= ARENA_PTE_READ;
	if (prot & PROT_WRITE)
		need |= ARENA_PTE_WRITE;
	if (prot & PROT_EXEC)
		need |= ARENA_PTE_EXEC;
	return (pte & ARENA_PTE_PRESENT) && (pte & need) == need;
}

/* Does `pte`, `distance` entries after (before, if negative) `from`, continue it? */
static bool in_sequence(uint64_t from, uint64_t pte, int distance, unsigned level)
{
	int64_t frames = (int64_t)distance * (level ? (int64_t)ARENA_LEAF_PAGES : 1);

	return (pte & RUN_KEY) == (from & RUN_KEY) &&
	       arena_pte_pfn(pte) == arena_pte_pfn(from) + (uint64_t)frames;
}

struct extension {
	const struct tlb *t;
	const struct tlb_walk *w;
	uint64_t table_page; /* page number in the window of the table's first entry */
};

/*
 * May the entry at `index` be part of the run? Else *joins says whether the kernel will merge the
 * run with what is mapped there.
 */
static bool continues(const struct extension *x, int index, uint64_t *pte, bool *joins)
{
	unsigned level = x->w->level;
	uint64_t pages = level ? ARENA_LEAF_PAGES : 1;
	uint64_t page = x->table_page + (uint64_t)index * pages;

	*joins = false;
	if (index < 0 || index >= (int)ARENA_PTRS_PER_TABLE)
		return false;
	if (level && x->t->base + (page << ARENA_PAGE_SHIFT) == x->t->left_out)
		return false;
	/* The window is aligned to what a PMD table covers, so the page lies inside. */
	*pte = read_entry(x->t, x->w->table, (unsigned)index);
	if (!in_sequence(x->w->pte, *pte, index - (int)x->w->index, level))
		return false;
	*joins = tlb_note_covers(x->t, page, pages, *pte);
	return !*joins;
}

static unsigned run_limit(const struct tlb *t, uint64_t addr, const struct tlb_walk *w)
{
	return w->level ? tlb_ops(t)->max_leaves(t, addr, w->pte) : ARENA_PTRS_PER_TABLE;
}

void tlb_find_run(const struct tlb *t, uint64_t addr, const struct tlb_walk *w, struct tlb_run *run)
{
	unsigned shift = ARENA_PAGE_SHIFT + 9 * w->level;
	unsigned limit = run_limit(t, addr, w);
	uint64_t table_start = ALIGN_DOWN(addr, UINT64_C(1) << (shift + 9));
	struct extension x = {t, w, (table_start - t->base) >> ARENA_PAGE_SHIFT};
	int first = (int)w->index, next = first + 1;
	uint64_t pte;

	run->pte = w->pte;
	run->nr_ahead = !!(w->pte & ARENA_PTE_AHEAD);
	run->joins_left = run->joins_right = false;
	while ((unsigned)(next - first) < limit && continues(&x, next, &pte, &run->joins_right)) {
		/* So many in a row are hardly the last: spare their notes a fault for each page. */
		if (w->level && next - first == NOTES_PER_PAGE_LEAVES)
			tlb_notes_expect(t, x.table_page + (uint64_t)next * ARENA_LEAF_PAGES,
					 (limit - NOTES_PER_PAGE_LEAVES) * ARENA_LEAF_PAGES);
		run->nr_ahead += !!(pte & ARENA_PTE_AHEAD);
		next++;
	}
	while ((unsigned)(next - first) < limit &&
	       continues(&x, first - 1, &pte, &run->joins_left)) {
		run->nr_ahead += !!(pte & ARENA_PTE_AHEAD);
		run->pte = pte;
		first--;
	}
	run->level = w->level;
	run->table = w->table;
	run->index = (unsigned)first;
	run->nr = (unsigned)(next - first);
	run->start = table_start + ((uint64_t)first << shift);
	run->end = table_start + ((uint64_t)next << shift);
}

unsigned tlb_count_breaks(const struct tlb *t, uint64_t addr)
{
	struct tlb_walk w;
	unsigned breaks = 0;
	uint64_t last = 0;

	tlb_walk(t, addr, &w);
	for (unsigned i = 0; w.level == 0 && i < ARENA_PTRS_PER_TABLE; i++) {
		uint64_t pte = read_entry(t, w.table, i);

		breaks += (last & pte & ARENA_PTE_PRESENT) && !in_sequence(last, pte, 1, 0);
		last = pte;
	}
	return breaks;
}
