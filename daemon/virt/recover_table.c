/* SPDX-License-Identifier: MIT */
/*
 * recover_table.c - page tables as another worker left them: one walk that makes the index of the
 * tables, checks every entry against its VMA and its frame, and counts it.
 *
 * What a crash can leave, and what is made of it:
 * - a table that is not in the tree: a client may be walking it, so it is in limbo like one that was
 *   just taken out, and free when the client has flushed;
 * - a table in the tree with nothing in it: taken out;
 * - an entry that permits more than its VMA does (mprotect changes the VMA first): reduced. One
 *   that permits less is right: the next fault raises it;
 * - a block of arena_alloc_pages() without some of its entries: noted, its rest is taken away when
 *   counts are right again. There can be one;
 * - 512 entries of one anonymous block that was to be split: they refer to the whole block.
 *
 * Everything else is damage: an entry outside every VMA (entries go before their VMA, and come after
 * it), of a frame that is free, another's, or not what the VMA maps there, bits that mean nothing,
 * tables that are in the tree twice.
 */
#include "base/log.h"
#include "daemon/virt/recovery.h"

#define UNSEEN UINT8_MAX /* level of a table that the walk has not met */
#define ENTRY_UNUSED_BITS UINT64_C(0xf80)

struct table_walk {
	struct recovery *r;
	struct mm *mm;
	struct vma *vma;     /* around the last entry */
	uint64_t nr_counted; /* entries */
	/* The block of arena_alloc_pages() that the last entry was of, and the one that lacks some. */
	pfn_t block;
	uint32_t block_seen, block_want;
	uint64_t block_addr;
	bool taking_back;
};

static int walk_damaged(const struct table_walk *w, uint64_t addr, const char *what)
{
	return mm_damaged(w->mm, "entry at %#llx %s", (unsigned long long)addr, what);
}

/* ---- blocks of arena_alloc_pages() --------------------------------------------------------- */

static int block_end(struct table_walk *w)
{
	struct mm *mm = w->mm;

	if (w->block == PFN_NONE || w->block_seen == w->block_want)
		return 0;
	if (mm->partial_order)
		return walk_damaged(w, w->block_addr, "is of a block without all its entries");
	mm->partial = mm->header->direct_base + ((uint64_t)w->block << ARENA_PAGE_SHIFT);
	mm->partial_order = page_order(pfn_to_page(w->r->p, w->block)) + 1;
	return 0;
}

static int block_entry(struct table_walk *w, uint64_t addr, pfn_t pfn, pfn_t head,
		       const struct page *page, bool leaf)
{
	unsigned order = page_order(page);
	int r;

	if (addr != w->mm->header->direct_base + ((uint64_t)pfn << ARENA_PAGE_SHIFT) ||
	    leaf != (order >= ARENA_LEAF_ORDER))
		return walk_damaged(w, addr, "is not where its frame's address is");
	if (head != w->block) {
		r = block_end(w);
		if (r)
			return r;
		w->block = head;
		w->block_addr = addr;
		w->block_seen = 0;
		w->block_want = 1u << (leaf ? order - ARENA_LEAF_ORDER : order);
	}
	w->block_seen++;
	return 0;
}

/* ---- one entry ------------------------------------------------------------------------------- */

static const char *object_entry_wrong(const struct vma *v, uint64_t addr, pfn_t pfn, pfn_t head,
				      const struct page *page, unsigned pages)
{
	struct object *o = v->object ? v->object : v->origin;
	uint64_t pgoff = v->pgoff + ((addr - v->start) >> ARENA_PAGE_SHIFT);
	struct chunk *chunk;

	/* A snapshot holds what its object may have let go of. */
	if (v->origin && !page->mapping)
		return page->index + (uint64_t)(pfn - head) != pgoff
			       ? "is of another page of its object"
			       : NULL;
	if (!o || page->mapping != o->id)
		return "is of another object's frame";
	if (page->index + (uint64_t)(pfn - head) != pgoff ||
	    (v->object && pgoff + pages > ALIGN_UP(o->size, ARENA_PAGE_SIZE) >> ARENA_PAGE_SHIFT))
		return "is of another page of its object";
	if (object_frame(o, pgoff, &chunk) != pfn)
		return "is of a frame that its object does not have";
	return NULL;
}

static const char *owner_wrong(const struct mm *mm, const struct vma *v, uint64_t addr, pfn_t pfn,
			       const struct page *page)
{
	if (page->flags & PG_ANON)
		return page->mapping != mm->anon_family      ? "is of another's memory"
		       : v->flags & (VM_SHARED | VM_SPECIAL) ? "is private memory shared"
							     : NULL;
	if (page->mapping != mm->id || !(v->flags & VM_SPECIAL))
		return "is of another's frame";
	return VM_IS_PFN_MAP(v->flags) && vma_pgoff(v, addr) != pfn ? "is of another number" : NULL;
}

/* What the entry may permit: no more than the VMA. */
static void reduce_entry(struct table_walk *w, uint64_t *entry, uint64_t allowed)
{
	uint64_t excess = *entry & ARENA_PTE_PERM & ~allowed;

	if (!excess)
		return;
	truth_store(entry, *entry & ~excess);
	w->r->stats->repaired++;
}

/* The frame behind an entry. */
struct entry_frame {
	uint64_t *entry;
	pfn_t pfn, head;
	const struct page *page;
	bool leaf;
};

static const char *frame_wrong(const struct table_walk *w, struct entry_frame *f)
{
	uint64_t e = *f->entry, number = arena_pte_pfn(e);
	const struct mm *mm = w->mm;
	unsigned slot = arena_pte_slot(e);

	if (!(e & ARENA_PTE_PRESENT) || e & ENTRY_UNUSED_BITS || (!f->leaf && e & ARENA_PTE_HUGE))
		return "has bits that mean nothing";
	f->pfn = (pfn_t)number;
	f->head = number < phys_nr_frames(w->r->p) ? compound_head(w->r->p, f->pfn) : PFN_NONE;
	if (f->head == PFN_NONE)
		return "is of a free frame";
	f->page = pfn_to_page(w->r->p, f->head);
	if (f->leaf &&
	    (!IS_ALIGNED(f->pfn, ARENA_LEAF_PAGES) || page_order(f->page) < ARENA_LEAF_ORDER))
		return "is no leaf's";
	if (slot >= mm->nr_slots || !mm->slots[slot].domain ||
	    pfn_domain(w->r->p, f->pfn) != mm->slots[slot].domain)
		return "is of another domain";
	return NULL;
}

/* Every VMA that the entry reaches into must be one that maps the frame; a leaf can lie over several that
 * differ in advice, or are about to. *allowed: what all of them permit. */
static const char *mapping_wrong(struct table_walk *w, uint64_t addr, const struct entry_frame *f,
				 uint64_t *allowed)
{
	uint64_t at = addr, end = addr + (f->leaf ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE);
	bool of_object = f->page->flags & PG_OBJECT;

	*allowed = ARENA_PTE_PERM;
	while (at < end) {
		struct vma *v = w->vma;
		pfn_t pfn = f->pfn + (pfn_t)((at - addr) >> ARENA_PAGE_SHIFT);
		const char *wrong;
		uint64_t stop;

		if (!v || at < v->start || at >= v->end)
			v = w->vma = vma_find(w->mm, at);
		if (!v || v->start > at)
			return "is outside every mapping";
		stop = MIN(end, v->end);
		if (arena_pte_slot(*f->entry) != (of_object ? v->slot : 0))
			return "is mapped from another file";
		wrong = of_object ? object_entry_wrong(v, at, pfn, f->head, f->page,
						       (unsigned)((stop - at) >> ARENA_PAGE_SHIFT))
				  : owner_wrong(w->mm, v, at, pfn, f->page);
		if (wrong)
			return wrong;
		*allowed &= vma_entry(v, pfn, f->leaf, false, false, of_object);
		at = stop;
	}
	return NULL;
}

/* The block of zeros, which is nobody's: there is nothing to count, and no order of stores to be in. */
static int check_zero_entry(struct table_walk *w, uint64_t addr, uint64_t *entry, bool leaf)
{
	const struct virt *v = w->r->v;
	uint64_t e = *entry, at = addr, allowed = ARENA_PTE_PERM & ~ARENA_PTE_WRITE;
	uint64_t end = addr + (leaf ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE);
	uint64_t page = arena_pte_pfn(e) - v->zero_pfn;

	if (!(e & ARENA_PTE_PRESENT) || e & (ENTRY_UNUSED_BITS | ARENA_PTE_HOLE) ||
	    !(e & ARENA_PTE_HUGE) == leaf || page >= (leaf ? 1 : ARENA_LEAF_PAGES) ||
	    arena_pte_slot(e) != ARENA_SLOT_ZERO || !w->mm->header->uses_zero)
		return walk_damaged(w, addr, "is not of the block of zeros");
	while (at < end) {
		const struct vma *vma = vma_find(w->mm, at);

		if (!vma || vma->start > at || vma->object || vma->flags & (VM_SHARED | VM_SPECIAL))
			return walk_damaged(w, addr, "is zeros where there can be none");
		allowed &= zero_entry(vma, (pfn_t)arena_pte_pfn(e), leaf);
		at = vma->end;
	}
	reduce_entry(w, entry, allowed);
	w->nr_counted++;
	return 0;
}

static int check_entry(struct table_walk *w, uint64_t addr, uint64_t *entry, bool leaf)
{
	struct entry_frame f = {.entry = entry, .leaf = leaf};
	const char *wrong;
	uint64_t allowed;
	int r = 0;

	if (entry_is_zero(w->r->v, *entry))
		return check_zero_entry(w, addr, entry, leaf);
	wrong = frame_wrong(w, &f);
	if (!wrong)
		wrong = mapping_wrong(w, addr, &f, &allowed);
	if (wrong)
		return walk_damaged(w, addr, wrong);
	if (f.page->flags & PG_KERNEL && w->vma->flags & VM_DIRECT)
		r = block_entry(w, addr, f.pfn, f.head, f.page, leaf);
	if (r)
		return r;
	reduce_entry(w, entry, allowed);
	if (!phys_recover_ref(w->r->p, f.head, true))
		return walk_damaged(w, addr, "is of no block in use");
	entry_count(w->vma, f.page, f.pfn, *entry, 1);
	w->nr_counted++;
	return 0;
}

/* Undo what check_entry() did. */
static int take_back(struct table_walk *w, uint64_t addr, const uint64_t *entry)
{
	pfn_t pfn = (pfn_t)arena_pte_pfn(*entry), head;

	w->nr_counted--;
	if (entry_is_zero(w->r->v, *entry))
		return 0;
	head = compound_head(w->r->p, pfn);
	entry_count(vma_find(w->mm, addr), pfn_to_page(w->r->p, head), pfn, *entry, -1);
	phys_recover_unref(w->r->p, head, true);
	return 0;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static int walk_tables(struct table_walk *w, uint32_t table, uint64_t base, unsigned level);

/* An entry of an upper level that is no leaf. *used: something is in the table below. */
static int walk_child(struct table_walk *w, uint32_t table, unsigned index, uint64_t addr,
		      unsigned level, bool *used)
{
	struct mm *mm = w->mm;
	uint64_t *entry = &pgtable_entries(mm, table)[index];
	uint64_t number = arena_pte_pfn(*entry);
	struct table_info *t;
	uint32_t child = (uint32_t)number;
	int r;

	if (w->taking_back)
		return walk_tables(w, child, addr, level - 1);
	if (*entry != pgtable_table_entry(child) || !number || number >= mm->header->nr_tables)
		return walk_damaged(w, addr, "names no table");
	t = &mm->tables[child];
	if (t->level != UNSEEN)
		return walk_damaged(w, addr, "names a table that is in use elsewhere");
	*t = (struct table_info){
		.parent = table, .index = (uint16_t)index, .level = (uint8_t)(level - 1)};
	r = walk_tables(w, child, addr, level - 1);
	if (r)
		return r;
	*used = t->used;
	if (t->used)
		return 0;
	truth_store(entry, UINT64_C(0));
	t->level = UNSEEN;
	w->r->stats->repaired++;
	return 0;
}

static int walk_tables(struct table_walk *w, uint32_t table, uint64_t base, unsigned level)
{
	uint64_t *entries = pgtable_entries(w->mm, table);
	uint64_t span = UINT64_C(1) << (ARENA_PAGE_SHIFT + 9 * level);

	for (unsigned i = 0; i < ARENA_PTRS_PER_TABLE; i++) {
		uint64_t addr = base + i * span;
		bool used = true;
		int r;

		/* Entries are taken back in the order they were counted in, and nothing behind them. */
		if (w->taking_back && !w->nr_counted)
			return ARENA_E_INVALID;
		if (!entries[i])
			continue;
		if (level && (level > 1 || !(entries[i] & ARENA_PTE_HUGE)))
			r = walk_child(w, table, i, addr, level, &used);
		else if (w->taking_back)
			r = take_back(w, addr, &entries[i]);
		else
			r = check_entry(w, addr, &entries[i], level);
		if (r)
			return r;
		if (!w->taking_back)
			w->mm->tables[table].used += used;
	}
	return 0;
}

/* Tables that are not in the tree: a client may be in one of them. */
static int tables_to_limbo(struct mm *mm)
{
	uint32_t n = 0, i;
	int r;

	for (i = 1; i < mm->header->nr_tables; i++)
		n += mm->tables[i].level == UNSEEN;
	r = limbo_reserve(mm, n);
	for (i = 1; i < mm->header->nr_tables && !r; i++)
		if (mm->tables[i].level == UNSEEN)
			limbo_add(mm, LIMBO_TABLE, i, 0);
	return r;
}

int pgtable_recover(struct recovery *r, struct mm *mm)
{
	struct table_walk w = {.r = r, .mm = mm, .block = PFN_NONE};
	uint32_t n = mm->header->nr_tables, i;
	int e;

	if (!n || n > ARENA_MM_MAX_TABLES)
		return mm_damaged(mm, "%u tables", n);
	e = pgtable_reserve_index(mm, n - 1);
	if (e)
		return e;
	for (i = 1; i < n; i++)
		mm->tables[i].level = UNSEEN;
	mm->tables[0] = (struct table_info){.parent = TABLE_NONE, .level = ARENA_TABLE_LEVELS - 1};
	e = walk_tables(&w, 0, 0, ARENA_TABLE_LEVELS - 1);
	if (!e)
		e = block_end(&w);
	if (!e)
		e = tables_to_limbo(mm);
	if (e) {
		w.taking_back = true;
		walk_tables(&w, 0, 0, ARENA_TABLE_LEVELS - 1);
		return e;
	}
	r->stats->entries += w.nr_counted;
	mm->nr_live_tables = n;
	phys_node_stat_add(phys_node(r->p, 0), NR_PAGETABLE, n);
	return 0;
}
