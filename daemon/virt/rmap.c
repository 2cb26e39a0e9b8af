/* SPDX-License-Identifier: MIT */
/*
 * rmap.c - what installing and taking an entry does to its frame.
 *
 * Each present entry holds one reference and one mapcount of its frame's head. Installing takes the
 * reference over from the caller; taking an entry away moves it to limbo, to be dropped when the
 * client has acknowledged. mapcount ends at once: it counts entries, not what clients may see.
 */
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

pfn_t frame_head(const struct virt *v, pfn_t pfn)
{
	const struct page *page = pfn_to_page(v->phys, pfn);

	return likely(page && page->refcount) ? pfn : compound_head(v->phys, pfn);
}

uint64_t vma_entry(const struct vma *vma, pfn_t pfn, bool leaf, bool hole, bool ahead,
		   bool of_object)
{
	uint64_t e = ARENA_PTE_PRESENT | ((uint64_t)pfn << ARENA_PTE_PFN_SHIFT);
	bool cow = of_object && !(vma->flags & VM_SHARED);

	/* A clean page of a file tells of its first write. */
	if (of_object && vma->object && vma->object->kind == OBJECT_FILE &&
	    !file_may_write(vma->mm->virt, pfn))
		cow = true;
	if (!cow && (vma->prot & PROT_WRITE))
		cow = frozen_forbids(vma, pfn, leaf, of_object);

	if (vma->prot & (PROT_READ | PROT_WRITE))
		e |= ARENA_PTE_READ;
	if ((vma->prot & PROT_WRITE) && !cow)
		e |= ARENA_PTE_WRITE;
	if (vma->prot & PROT_EXEC)
		e |= ARENA_PTE_EXEC | ARENA_PTE_READ;
	if (leaf)
		e |= ARENA_PTE_HUGE;
	if (hole)
		e |= ARENA_PTE_HOLE;
	if (ahead)
		e |= ARENA_PTE_AHEAD;
	/* A copied page of a private mapping is in the mm's own domain, whatever the object's is. */
	return e | ((uint64_t)(of_object ? vma->slot : 0) << ARENA_PTE_SLOT_SHIFT);
}

uint64_t entry_refresh(const struct vma *vma, uint64_t addr, const struct pte_ref *ref)
{
	uint64_t old = *ref->entry, fresh;
	pfn_t pfn = (pfn_t)arena_pte_pfn(old);
	struct virt *v = vma->mm->virt;
	const struct page *page;

	if (entry_is_zero(v, old))
		return zero_entry(vma, pfn, old & ARENA_PTE_HUGE);
	page = pfn_to_page(v->phys, frame_head(v, pfn));
	fresh = vma_entry(vma, pfn, old & ARENA_PTE_HUGE, old & ARENA_PTE_HOLE,
			  old & ARENA_PTE_AHEAD, page->flags & PG_OBJECT);
	if ((fresh & ~old & ARENA_PTE_WRITE) && (page->flags & PG_ANON) &&
	    !cow_exclusive(vma->mm, addr, ref))
		fresh &= ~ARENA_PTE_WRITE;
	return fresh;
}

static struct node *frame_node(struct virt *v, pfn_t pfn)
{
	return phys_node(v->phys, pfn_zone(v->phys, pfn)->node);
}

static unsigned entry_pages(uint64_t entry)
{
	return entry & ARENA_PTE_HUGE ? ARENA_LEAF_PAGES : 1;
}

void entry_count(const struct vma *vma, const struct page *page, pfn_t pfn, uint64_t entry,
		 int sign)
{
	struct mm *mm = vma->mm;
	int64_t n = entry_pages(entry);
	struct node *node = frame_node(mm->virt, pfn);

	if (page->flags & PG_OBJECT) {
		const struct object *o = vma->object ? vma->object : vma->origin;

		*(o->file ? &mm->rss_file : &mm->rss_shmem) += (uint64_t)(sign * n);
		phys_node_stat_add(node, NR_FILE_MAPPED, sign * n);
	} else if (page->flags & PG_ANON) {
		mm->rss_anon += (uint64_t)(sign * n);
		phys_node_stat_add(node, NR_ANON_MAPPED, sign * n);
		if (entry & ARENA_PTE_HUGE)
			phys_node_stat_add(node, NR_ANON_THPS, sign);
	} else {
		mm->direct_pages += (uint64_t)(sign * n);
		phys_node_stat_add(node, NR_ANON_MAPPED, sign * n);
	}
	if (entry & ARENA_PTE_HUGE)
		mm->leaves += (uint64_t)(int64_t)sign;
}

void map_frame(struct vma *vma, const struct pte_ref *ref, pfn_t pfn, uint64_t entry)
{
	struct mm *mm = vma->mm;
	struct page *page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, pfn));

	page->mapcount++;
	entry_count(vma, page, pfn, entry, 1);
	pte_install(mm, ref, entry);
	if (vma->flags & VM_LOCKED)
		page_mlock(mm->virt, frame_head(mm->virt, pfn), 1);
}

void map_frame_over(struct vma *vma, const struct pte_ref *ref, pfn_t pfn, uint64_t entry)
{
	struct mm *mm = vma->mm;
	struct page *page = pfn_to_page(mm->virt->phys, pfn);

	page->mapcount++;
	entry_count(vma, page, pfn, entry, 1);
	pte_switch(mm, ref, entry);
	if (vma->flags & VM_LOCKED)
		page_mlock(mm->virt, pfn, 1);
}

void entry_mark_limbo(struct mm *mm, uint64_t entry)
{
	struct page *page;

	if (entry_is_zero(mm->virt, entry))
		return;
	page = pfn_to_page(mm->virt->phys, frame_head(mm->virt, (pfn_t)arena_pte_pfn(entry)));
	if (!(page->flags & PG_LIMBO))
		truth_store(&page->flags, page->flags | PG_LIMBO);
}

/* The frame behind an entry that is about to go: counted out, marked. Returns its head. */
static pfn_t entry_leave(const struct vma *vma, uint64_t entry)
{
	struct mm *mm = vma->mm;
	pfn_t pfn = (pfn_t)arena_pte_pfn(entry), head = frame_head(mm->virt, pfn);
	struct page *page = pfn_to_page(mm->virt->phys, head);

	BUG_ON(!page || !page->mapcount);
	if (!mm->dying)
		page_enter_limbo(mm->virt->phys, head);
	entry_count(vma, page, pfn, entry, -1);
	page->mapcount--;
	if (vma->flags & VM_LOCKED)
		page_munlock(mm->virt, head, 1);
	return head;
}

void unmap_entry(const struct vma *vma, struct pte_ref *ref)
{
	struct mm *mm = vma->mm;
	unsigned pages = entry_pages(*ref->entry);
	pfn_t head;

	if (entry_is_zero(mm->virt, *ref->entry)) {
		pte_clear(mm, ref);
		return;
	}
	head = entry_leave(vma, *ref->entry);
	pte_clear(mm, ref);
	if (mm->dying)
		put_page(mm->virt->phys, head);
	else
		limbo_add(mm, LIMBO_FRAME, head, pages);
}

void remap_entry(const struct vma *vma, struct pte_ref *ref, pfn_t pfn, uint64_t entry)
{
	struct mm *mm = vma->mm;
	unsigned pages = entry_pages(*ref->entry);
	bool zero = entry_is_zero(mm->virt, *ref->entry);
	pfn_t head = zero ? PFN_NONE : entry_leave(vma, *ref->entry);
	pfn_t to = frame_head(mm->virt, pfn);
	struct page *page = pfn_to_page(mm->virt->phys, to);

	page->mapcount++;
	entry_count(vma, page, pfn, entry, 1);
	pte_switch(mm, ref, entry);
	if (vma->flags & VM_LOCKED)
		page_mlock(mm->virt, to, 1);
	if (!zero)
		limbo_add(mm, LIMBO_FRAME, head, pages);
}

void drop_replaced_entry(const struct vma *vma, uint64_t entry)
{
	if (!entry_is_zero(vma->mm->virt, entry))
		limbo_add(vma->mm, LIMBO_FRAME, entry_leave(vma, entry), entry_pages(entry));
}

struct zap {
	uint64_t start, end;
	const struct vma *vma; /* of the last entry */
	bool any;
};

static int zap_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct zap *z = arg;
	int r;

	/* The frame and the tables on the way up that may become empty. */
	r = limbo_reserve(mm, 1 + ARENA_TABLE_LEVELS);
	if (r)
		return r;
	z->any = true;
	ASSERT(!ref->level || (addr >= z->start && addr + ARENA_LEAF_SIZE <= z->end));
	if (!z->vma || addr >= z->vma->end)
		z->vma = vma_find(mm, addr);
	unmap_entry(z->vma, ref);
	return 0;
}

int split_leaf_at(struct mm *mm, uint64_t addr)
{
	struct pte_ref ref;

	if (IS_ALIGNED(addr, ARENA_LEAF_SIZE) || !pgtable_lookup(mm, addr, &ref) || !ref.level)
		return 0;
	return pgtable_split_leaf(mm, &ref, addr);
}

int zap_range(struct mm *mm, uint64_t start, uint64_t end, bool *any)
{
	struct zap z = {.start = start, .end = end};
	int r;

	cow_forget(mm, start, end);
	r = split_leaf_at(mm, start);

	if (!r)
		r = split_leaf_at(mm, end);
	if (!r)
		r = pgtable_walk(mm, start, end, zap_one, &z);
	*any = z.any;
	return r;
}
