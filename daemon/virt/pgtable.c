/* SPDX-License-Identifier: MIT */
/*
 * pgtable.c - 4-level page tables in the mm file.
 *
 * Table 0 is the root. An upper entry is present and holds a table number where a last-level
 * entry holds a pfn. The daemon is the only writer; clients walk at any time, so every change is
 * one atomic store, a new table is filled before its parent points to it, and a table taken out
 * waits in limbo until the client can no longer be walking it.
 *
 * Index: struct table_info per table (parent, place in it, entries in use); rebuilt by a walk.
 *
 * Invariants: used counts the non-zero entries; a table other than the root with used 0 is in the
 * tree only where memory ran out for the one below it, and never at the last level; a PMD entry
 * is either a table or a leaf.
 */
#include "base/os.h"
#include "daemon/virt/internal.h"

#define TABLES_AT_ONCE 8u

uint64_t *pgtable_entries(const struct mm *mm, uint32_t table)
{
	return (uint64_t *)(void *)(mm->base + ARENA_MM_TABLES_OFFSET +
				    (uint64_t)table * ARENA_PAGE_SIZE);
}

int pgtable_reserve_index(struct mm *mm, uint32_t table)
{
	uint32_t cap = mm->cap_tables ? mm->cap_tables : 8;
	struct table_info *grown;

	while (cap <= table)
		cap *= 2;
	if (cap != mm->cap_tables) {
		grown = mem_grow(mm->tables, mm->cap_tables, cap, sizeof(*grown));
		if (!grown)
			return ARENA_E_NO_MEMORY;
		mm->tables = grown;
		mm->cap_tables = cap;
	}
	/* A table may be freed only if there is room to note it: reserve that room now. */
	if (mm->cap_free_tables < mm->cap_tables) {
		uint32_t *stack = mem_grow(mm->free_tables, mm->cap_free_tables, mm->cap_tables,
					   sizeof(*stack));
		if (!stack)
			return ARENA_E_NO_MEMORY;
		mm->free_tables = stack;
		mm->cap_free_tables = mm->cap_tables;
	}
	return 0;
}

/*
 * A fresh table's memory is there before it is written to: what would be a fault of ours for each, while a client
 * waits, is one call for some. Only a hint, and no store to the truth: its bytes are zeros, and stay so.
 */
static void expect_tables(const struct mm *mm, uint32_t table)
{
	uint32_t n = MIN(TABLES_AT_ONCE, ARENA_MM_MAX_TABLES - table);

	if (table % TABLES_AT_ONCE)
		return;
	if (os_populate(pgtable_entries(mm, table), (uint64_t)n * ARENA_PAGE_SIZE) < 0)
		return;
	/* And where a hypervisor shadows page tables, its fault is the dearer one. */
	for (uint32_t i = 0; i < n; i++)
		__atomic_fetch_or(pgtable_entries(mm, table + i), 0, __ATOMIC_RELAXED);
}

static int table_alloc(struct mm *mm, uint32_t *out)
{
	uint32_t table;
	int r;

	if (mm->reserved_tables)
		mm->reserved_tables--;
	else if (faultpoint("virt.table"))
		return ARENA_E_NO_MEMORY;
	if (mm->nr_free_tables) {
		table = mm->free_tables[--mm->nr_free_tables];
		truth_zero(pgtable_entries(mm, table), ARENA_PAGE_SIZE);
	} else {
		table = mm->header->nr_tables;
		if (table >= ARENA_MM_MAX_TABLES)
			return ARENA_E_NO_MEMORY;
		r = pgtable_reserve_index(mm, table);
		if (r)
			return r;
		expect_tables(mm, table);
		truth_store(&mm->header->nr_tables, table + 1);
	}
	mm->nr_live_tables++;
	phys_node_stat_add(phys_node(mm->virt->phys, 0), NR_PAGETABLE, 1);
	*out = table;
	return 0;
}

int pgtable_reserve(struct mm *mm, uint32_t n)
{
	uint32_t top = mm->header->nr_tables;

	if (faultpoint("virt.table"))
		return ARENA_E_NO_MEMORY;
	if (n > mm->nr_free_tables) {
		uint32_t fresh = n - mm->nr_free_tables;
		int r;

		if (fresh > ARENA_MM_MAX_TABLES - top)
			return ARENA_E_NO_MEMORY;
		r = pgtable_reserve_index(mm, top + fresh - 1);
		if (r)
			return r;
	}
	mm->reserved_tables = n;
	return 0;
}

void pgtable_unreserve(struct mm *mm)
{
	mm->reserved_tables = 0;
}

void pgtable_release(struct mm *mm, uint32_t table)
{
	ASSERT(mm->nr_free_tables < mm->cap_free_tables);
	mm->free_tables[mm->nr_free_tables++] = table;
	mm->nr_live_tables--;
	phys_node_stat_add(phys_node(mm->virt->phys, 0), NR_PAGETABLE, -1);
}

int pgtable_init(struct mm *mm)
{
	uint32_t root;
	int r = table_alloc(mm, &root);

	if (r)
		return r;
	mm->tables[root] = (struct table_info){.parent = TABLE_NONE, .level = 3};
	return 0;
}

void pgtable_free_index(struct mm *mm)
{
	phys_node_stat_add(phys_node(mm->virt->phys, 0), NR_PAGETABLE,
			   -(int64_t)mm->nr_live_tables);
	free(mm->tables);
	free(mm->free_tables);
}

static void ref_at(const struct mm *mm, uint32_t table, uint64_t addr, unsigned level,
		   struct pte_ref *ref)
{
	ref->table = table;
	ref->level = level;
	ref->index = arena_table_index(addr, level);
	ref->entry = &pgtable_entries(mm, table)[ref->index];
}

bool pgtable_lookup(const struct mm *mm, uint64_t addr, struct pte_ref *ref)
{
	uint32_t table = 0;
	unsigned level;

	for (level = ARENA_TABLE_LEVELS - 1;; level--) {
		ref_at(mm, table, addr, level, ref);
		if (level == 0 || (*ref->entry & ARENA_PTE_HUGE))
			return true;
		if (!*ref->entry)
			return false;
		table = (uint32_t)arena_pte_pfn(*ref->entry);
	}
}

void pgtable_parent(const struct mm *mm, struct pte_ref *ref)
{
	const struct table_info *t = &mm->tables[ref->table];

	ref->table = t->parent;
	ref->level++;
	ref->index = t->index;
	ref->entry = &pgtable_entries(mm, ref->table)[ref->index];
}

/* A table between parent entry and its future entries: linked only after it is complete. */
static int table_link(struct mm *mm, const struct pte_ref *parent, uint32_t *out)
{
	uint32_t table;
	int r = table_alloc(mm, &table);

	if (r)
		return r;
	mm->tables[table] = (struct table_info){
		.parent = parent->table,
		.index = (uint16_t)parent->index,
		.level = (uint8_t)(parent->level - 1),
	};
	*out = table;
	return 0;
}

int pgtable_get(struct mm *mm, uint64_t addr, unsigned level, struct pte_ref *ref)
{
	uint32_t table = 0;
	unsigned l;
	int r;

	for (l = ARENA_TABLE_LEVELS - 1;; l--) {
		ref_at(mm, table, addr, l, ref);
		if (l == level)
			return 0;
		BUG_ON(*ref->entry & ARENA_PTE_HUGE);
		if (*ref->entry) {
			table = (uint32_t)arena_pte_pfn(*ref->entry);
			continue;
		}
		r = table_link(mm, ref, &table);
		if (r)
			return r;
		pte_install(mm, ref, pgtable_table_entry(table));
	}
}

void pte_install(struct mm *mm, const struct pte_ref *ref, uint64_t value)
{
	ASSERT(!*ref->entry && value);
	mm->tables[ref->table].used++;
	truth_store(ref->entry, value);
}

void pte_switch(struct mm *mm, const struct pte_ref *ref, uint64_t value)
{
	(void)mm;
	ASSERT(*ref->entry && value);
	truth_store(ref->entry, value);
}

void pte_clear(struct mm *mm, const struct pte_ref *ref)
{
	uint32_t table = ref->table;
	uint64_t *entry = ref->entry;

	for (;;) {
		struct table_info *t = &mm->tables[table];
		uint32_t empty = table;

		truth_store(entry, UINT64_C(0));
		if (--t->used || t->parent == TABLE_NONE)
			return;
		entry = &pgtable_entries(mm, t->parent)[t->index];
		table = t->parent;
		if (mm->dying)
			pgtable_release(mm, empty);
		else
			limbo_add(mm, LIMBO_TABLE, empty, 0);
	}
}

/* Count 512 entries where one was. */
static void count_split(struct mm *mm, const struct vma *vma, pfn_t head)
{
	struct virt *v = mm->virt;
	struct page *page = pfn_to_page(v->phys, head);
	unsigned i;

	mm->leaves--;
	if (page->flags & PG_ANON)
		phys_node_stat_add(phys_node(v->phys, pfn_zone(v->phys, head)->node), NR_ANON_THPS,
				   -1);
	if ((page->flags & PG_ANON) && page_order(page) == ARENA_LEAF_ORDER &&
	    page->refcount == 1) {
		/* Ours alone: the block becomes single frames, each with its own entry. */
		split_page(v->phys, head);
		for (i = 1; page->flags & PG_MLOCKED && i < ARENA_PTRS_PER_TABLE; i++)
			page[i].mlock_count = 1;
		state_event(v->state, EV_THP_SPLIT_PAGE, 1);
		return;
	}
	/* An object's, shared or pinned: the block stays whole; its head is now referenced by 512
	 * entries instead of one. */
	for (i = 1; i < ARENA_PTRS_PER_TABLE; i++) {
		get_page(v->phys, head);
		page->mapcount++;
	}
	if (vma->flags & VM_LOCKED)
		page_mlock(v, head, ARENA_PTRS_PER_TABLE - 1);
}

int pgtable_split_leaf(struct mm *mm, struct pte_ref *ref, uint64_t addr)
{
	uint64_t old = *ref->entry, base, *entries;
	struct virt *v = mm->virt;
	pfn_t first = (pfn_t)arena_pte_pfn(old);
	uint32_t table;
	unsigned i;
	int r = table_link(mm, ref, &table);

	if (r)
		return r;
	entries = pgtable_entries(mm, table);
	base = (old & ~(ARENA_PTE_HUGE | ARENA_PTE_PFN_MASK));
	for (i = 0; i < ARENA_PTRS_PER_TABLE; i++)
		entries[i] = base | ((uint64_t)(first + i) << ARENA_PTE_PFN_SHIFT);
	truth_count();
	mm->tables[table].used = ARENA_PTRS_PER_TABLE;
	state_event(v->state, EV_THP_SPLIT_PMD, 1);
	/* 512 entries of one block are right at any time, an entry for 512 blocks would not be. */
	pte_switch(mm, ref, pgtable_table_entry(table));
	if (!entry_is_zero(v, old))
		count_split(mm, vma_find(mm, addr), frame_head(v, first));
	ref_at(mm, table, addr, 0, ref);
	return 0;
}

struct walk {
	struct mm *mm;
	uint64_t start, end;
	pte_visitor fn;
	void *arg;
};

static int walk_table(const struct walk *w, uint32_t table, uint64_t base, unsigned level)
{
	uint64_t span = UINT64_C(1) << (ARENA_PAGE_SHIFT + 9 * level);
	unsigned i = w->start > base ? arena_table_index(w->start, level) : 0;
	int r;

	for (; i < ARENA_PTRS_PER_TABLE; i++) {
		uint64_t addr = base + i * span, entry;
		struct pte_ref ref;

		if (addr >= w->end)
			break;
		ref_at(w->mm, table, addr, level, &ref);
		entry = *ref.entry;
		if (!entry)
			continue;
		if (level && !(entry & ARENA_PTE_HUGE))
			r = walk_table(w, (uint32_t)arena_pte_pfn(entry), addr, level - 1);
		else
			r = w->fn(w->mm, addr, &ref, w->arg);
		if (r)
			return r;
		/* The visitor may have emptied this table out of the tree. */
		if (table && !w->mm->tables[table].used)
			break;
	}
	return 0;
}

int pgtable_walk(struct mm *mm, uint64_t start, uint64_t end, pte_visitor fn, void *arg)
{
	struct walk w = {.mm = mm, .start = start, .end = end, .fn = fn, .arg = arg};

	return walk_table(&w, 0, 0, ARENA_TABLE_LEVELS - 1);
}
