/* SPDX-License-Identifier: MIT */
/*
 * pin.c - arena_pin() and arena_unpin(): get_user_pages(), and the record of what was got.
 *
 * A pinned page is a reference of its frame beside the entries'. So it is not freed when it is
 * unmapped, and nobody moves it: PG_PINNED says so, an index with the number of pins (pin_count).
 *
 * What is private is made the mm's own before it is pinned, for reading as well: a frame that others
 * share is copied, and so is a segment's of a private mapping. From then on nobody else gets to
 * map it (fork.c copies it), so no write ever puts another frame in its place (cow_exclusive()).
 * A block of several frames is pinned, and one's own, as a whole.
 *
 * Truth: pin records of the mm file, each a run of pages with contiguous frames; `pages`, stored last,
 * makes it true. A page pinned n times is in n records. A run that is cut: its upper part is written
 * as BORN, with the number of the run's record in the upper bits of its address, the run is shortened,
 * the part is made true. Recovery makes a BORN record true if its run does not cover it any more, else
 * frees it. References follow from the records, and so does the index of them (pin_index.c).
 *
 * Unpinning goes by address, as it was when it was pinned, whatever is mapped there now.
 */
#include "daemon/virt/resume.h"

#define PIN_PIECE 4096u /* pages of one call */

static struct arena_pin_record *pin_record(const struct mm *mm, uint32_t i)
{
	return &((struct arena_pin_record *)(void *)(mm->base + ARENA_MM_PINS_OFFSET))[i];
}

/* Whatever the bits above once said. */
static uint64_t pin_address(const struct arena_pin_record *r)
{
	return r->address & ((UINT64_C(1) << ARENA_PIN_FROM_SHIFT) - 1);
}

/* A page of the run? */
static bool pin_covers(const struct arena_pin_record *r, uint64_t addr)
{
	return addr >= pin_address(r) && addr - pin_address(r) < (uint64_t)r->pages
									 << ARENA_PAGE_SHIFT;
}

static uint64_t pin_end(const struct arena_pin_record *r)
{
	return pin_address(r) + ((uint64_t)r->pages << ARENA_PAGE_SHIFT);
}

static struct arena_pin_record *record_free(struct mm *mm)
{
	uint32_t i;

	return pin_index_take(mm, &i) ? NULL : pin_record(mm, i);
}

static uint32_t record_number(const struct mm *mm, const struct arena_pin_record *r)
{
	return (uint32_t)(r - pin_record(mm, 0));
}

static uint32_t record_range(const struct mm *mm, uint32_t i, uint64_t *start)
{
	const struct arena_pin_record *r = pin_record(mm, i);

	*start = pin_address(r);
	return r->pages;
}

/* Its number of pages has changed: have the index know. */
static void record_changed(struct mm *mm, const struct arena_pin_record *r)
{
	if (r->pages)
		pin_index_set(mm, record_number(mm, r), pin_address(r), pin_end(r));
	else
		pin_index_give(mm, record_number(mm, r));
}

static void record_store(struct arena_pin_record *r, uint64_t address, pfn_t pfn, uint32_t pages)
{
	truth_store(&r->address, address);
	truth_store(&r->pfn, pfn);
	truth_store(&r->pages, pages);
}

/* ---- pinning -------------------------------------------------------------------------------------- */

struct page *follow_page(struct mm *mm, uint64_t addr, bool write, pfn_t *pfn)
{
	const struct vma *v = vma_find(mm, addr);
	struct pte_ref ref;
	struct page *page;

	if (!v || v->start > addr || !pgtable_lookup(mm, addr, &ref) || !*ref.entry)
		return NULL;
	if (write && !(*ref.entry & ARENA_PTE_WRITE))
		return NULL;
	page = vm_normal_page(v, *ref.entry);
	*pfn = (pfn_t)arena_pte_pfn(*ref.entry) + (ref.level ? arena_table_index(addr, 0) : 0);
	return page;
}

struct page *vm_normal_page(const struct vma *v, uint64_t entry)
{
	if (v->flags & (VM_PFNMAP | VM_DIRECT) || entry_is_zero(v->mm->virt, entry))
		return NULL;
	return pfn_to_page(v->mm->virt->phys, frame_head(v->mm->virt, (pfn_t)arena_pte_pfn(entry)));
}

static void count_in(void *arg, pfn_t head)
{
	const struct virt *v = arg;
	struct page *page = pfn_to_page(v->phys, head);

	if (!(page->flags & PG_PINNED)) {
		page->flags |= PG_PINNED;
		page->pin_count = 0;
	}
	page->pin_count++;
}

static void count_out(const struct virt *v, pfn_t head)
{
	struct page *page = pfn_to_page(v->phys, head);

	BUG_ON(!page_pins(page));
	if (--page->pin_count)
		return;
	page->flags &= ~PG_PINNED;
	page->lru_prev = PFN_NONE;
}

/* One more page of the run in *r, or the first of a new one. */
static int pin_page(struct mm *mm, uint64_t addr, pfn_t pfn, struct arena_pin_record **r)
{
	struct arena_pin_record *run = *r;

	get_page(mm->virt->phys, frame_head(mm->virt, pfn));
	if (run && pin_end(run) == addr && run->pfn + run->pages == pfn &&
	    run->pages < ARENA_PIN_BORN - 1) {
		truth_store(&run->pages, run->pages + 1);
	} else {
		*r = record_free(mm);
		if (!*r) {
			put_page(mm->virt->phys, frame_head(mm->virt, pfn));
			return ARENA_E_NO_MEMORY;
		}
		record_store(*r, addr, pfn, 1);
	}
	record_changed(mm, *r);
	count_in(mm->virt, frame_head(mm->virt, pfn));
	mm->pinned_vm++;
	return 0;
}

static int pin_present(struct mm *mm, uint64_t addr, uint64_t end, bool write, uint64_t *next)
{
	struct arena_pin_record *run = NULL;
	pfn_t pfn;
	int r = 0;

	for (; addr < end && !r; addr += ARENA_PAGE_SIZE) {
		if (!follow_page(mm, addr, write, &pfn))
			break;
		r = pin_page(mm, addr, pfn, &run);
		if (r)
			break;
	}
	*next = addr;
	return r;
}

/* Pages of the direct map stay where they are by themselves; nothing is counted for them. */
static int check_pin(const struct mm *mm, uint64_t addr, uint64_t end)
{
	uint64_t limit = mm_limit(mm, VM_LIMIT_MEMLOCK) >> ARENA_PAGE_SHIFT;

	if (direct_contains(mm, addr, end))
		return ARENA_E_FAULT;
	return mm->pinned_vm + ((end - addr) >> ARENA_PAGE_SHIFT) > limit ? ARENA_E_NO_MEMORY : 0;
}

/* ---- unpinning ------------------------------------------------------------------------------------- */

static void put_pages(struct mm *mm, pfn_t pfn, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		pfn_t head = frame_head(mm->virt, pfn + i);

		count_out(mm->virt, head);
		put_page(mm->virt->phys, head);
	}
	mm->pinned_vm -= n;
}

/* Take pages [first, first + n) out of the run. ARENA_E_NO_MEMORY: no record for its upper part. */
static int cut_run(struct mm *mm, struct arena_pin_record *r, uint32_t first, uint32_t n)
{
	uint32_t pages = r->pages, above = pages - first - n;
	pfn_t pfn = r->pfn;
	struct arena_pin_record *rest = NULL;

	if (above) {
		uint64_t from = (uint64_t)record_number(mm, r) << ARENA_PIN_FROM_SHIFT;

		rest = record_free(mm);
		if (!rest)
			return ARENA_E_NO_MEMORY;
		record_store(rest,
			     from | (pin_address(r) + ((uint64_t)(first + n) << ARENA_PAGE_SHIFT)),
			     pfn + first + n, above | ARENA_PIN_BORN);
	}
	truth_store(&r->pages, first);
	if (rest) {
		truth_store(&rest->pages, above);
		record_changed(mm, rest);
	}
	record_changed(mm, r);
	put_pages(mm, pfn + first, n);
	return 0;
}

/* A record that has addr pinned. */
static struct arena_pin_record *find_run(const struct mm *mm, uint64_t addr)
{
	uint32_t i;

	return pin_index_find(mm, addr, &i) ? pin_record(mm, i) : NULL;
}

static int unpin_range(struct mm *mm, uint64_t at, uint64_t end)
{
	while (at < end) {
		struct arena_pin_record *r = find_run(mm, at);
		uint32_t first, n;
		int e;

		if (!r)
			return ARENA_E_INVALID;
		first = (uint32_t)((at - pin_address(r)) >> ARENA_PAGE_SHIFT);
		n = (uint32_t)MIN((end - at) >> ARENA_PAGE_SHIFT, (uint64_t)(r->pages - first));
		e = cut_run(mm, r, first, n);
		if (e)
			return e;
		at += (uint64_t)n << ARENA_PAGE_SHIFT;
	}
	return 0;
}

/* A worker that died in this call has unpinned so many pages of it, from addr on. */
static uint64_t unpinned_before(struct mm *mm, uint64_t addr, uint64_t len)
{
	uint64_t arg[JOURNAL_ARGS];

	if (!call_resume(mm->virt, VIRT_CALL_UNPIN, mm->id, arg) || arg[1] != addr ||
	    arg[3] != len || arg[2] < mm->pinned_vm)
		return 0;
	return MIN(arg[2] - mm->pinned_vm, (len + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT);
}

int vm_unpin(struct mm *mm, uint64_t addr, uint64_t len)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), from, at, done;
	struct arena_pin_record *r;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || (len && (!range_ok(addr, len) || end < addr)))
		return ARENA_E_INVALID;
	done = unpinned_before(mm, addr, len);
	from = addr + (done << ARENA_PAGE_SHIFT);
	/* All or nothing. */
	for (at = from; at < end; at = pin_end(r)) {
		r = find_run(mm, at);
		if (!r)
			return ARENA_E_INVALID;
	}
	call_prepare(mm->virt, VIRT_CALL_UNPIN, mm->id, addr, mm->pinned_vm + done, len, 0);
	return unpin_range(mm, from, end);
}

/* ---- the call ---------------------------------------------------------------------------------------- */

/* A worker that died in this call had pinned some pages from addr on: they are let go. */
static void pin_undo(struct mm *mm, uint64_t addr)
{
	uint64_t arg[JOURNAL_ARGS], at;

	if (!call_resume(mm->virt, VIRT_CALL_PIN, mm->id, arg) || arg[1] != addr)
		return;
	while (mm->pinned_vm > arg[2]) {
		at = addr + ((mm->pinned_vm - 1 - arg[2]) << ARENA_PAGE_SHIFT);
		if (unpin_range(mm, at, at + ARENA_PAGE_SIZE))
			break;
	}
}

int vm_pin(struct mm *mm, uint64_t addr, uint64_t len, bool write, unsigned cpu, uint64_t *next)
{
	uint64_t end = ALIGN_UP(addr + len, ARENA_PAGE_SIZE), reached = addr;
	int r;

	CONTROL_THREAD();
	if (!IS_ALIGNED(addr, ARENA_PAGE_SIZE) || (len && (!range_ok(addr, len) || end < addr)))
		return ARENA_E_INVALID;
	*next = addr;
	if (!len)
		return 0;
	pin_undo(mm, addr);
	r = check_pin(mm, addr, end);
	if (r)
		return r;
	end = MIN(end, addr + PIN_PIECE * ARENA_PAGE_SIZE);
	r = vm_populate(mm, addr, end - addr, write ? POPULATE_PIN_WRITE : POPULATE_PIN_READ, cpu,
			&reached);
	if (r)
		return r;
	call_prepare(mm->virt, VIRT_CALL_PIN, mm->id, addr, mm->pinned_vm, 0, 0);
	r = pin_present(mm, addr, reached, write, next);
	/* What is pinned is told, so that the caller can undo it. */
	return *next > addr ? 0 : r;
}

void mm_unpin_all(struct mm *mm)
{
	uint32_t i;

	for (i = 0; i < pin_index_top(mm); i++) {
		struct arena_pin_record *r = pin_record(mm, i);
		uint32_t pages = r->pages;

		if (!pages)
			continue;
		truth_store(&r->pages, 0u);
		record_changed(mm, r);
		put_pages(mm, r->pfn, pages);
	}
}

/* ---- for those who count ---------------------------------------------------------------------------- */

void mm_for_each_pin(struct mm *mm, void (*fn)(void *arg, pfn_t head), void *arg)
{
	uint32_t i, n;

	for (i = 0; i < pin_index_top(mm); i++) {
		const struct arena_pin_record *r = pin_record(mm, i);

		for (n = 0; n < r->pages; n++)
			fn(arg, frame_head(mm->virt, r->pfn + n));
	}
}

void mm_recover_pin_counts(struct mm *mm)
{
	mm_for_each_pin(mm, count_in, mm->virt);
}

/* Was the run that it was cut from not shortened yet? */
static bool still_in_its_run(const struct mm *mm, uint32_t nr, const struct arena_pin_record *born)
{
	uint64_t from = born->address >> ARENA_PIN_FROM_SHIFT;

	return from < nr && !(pin_record(mm, (uint32_t)from)->pages & ARENA_PIN_BORN) &&
	       pin_covers(pin_record(mm, (uint32_t)from), pin_address(born));
}

/* Frames that are in use, and in a file that the client has. */
static bool record_makes_sense(struct mm *mm, const struct arena_pin_record *r)
{
	uint32_t pages = r->pages & ~ARENA_PIN_BORN, n;
	uint64_t nr = phys_nr_frames(mm->virt->phys);

	if (!pages || r->pfn >= nr || pages > nr - r->pfn ||
	    !IS_ALIGNED(r->address, ARENA_PAGE_SIZE) ||
	    !window_contains(mm, pin_address(r),
			     pin_address(r) + ((uint64_t)pages << ARENA_PAGE_SHIFT)))
		return false;
	for (n = 0; n < pages; n++)
		if (compound_head(mm->virt->phys, r->pfn + n) == PFN_NONE)
			return false;
	return true;
}

unsigned mm_recover_pins(struct mm *mm, uint32_t n)
{
	unsigned repaired = 0;
	uint32_t i;

	mm->pinned_vm = 0;
	for (i = 0; i < n; i++) {
		struct arena_pin_record *r = pin_record(mm, i);
		uint32_t pages = r->pages;

		if (pages && !record_makes_sense(mm, r))
			pages = 0;
		else if (pages & ARENA_PIN_BORN)
			pages = still_in_its_run(mm, n, r) ? 0 : pages & ~ARENA_PIN_BORN;
		if (pages != r->pages) {
			truth_store(&r->pages, pages);
			repaired++;
		}
		mm->pinned_vm += pages;
	}
	pin_index_rebuild(mm, n, record_range);
	return repaired;
}

bool mm_pins_are_valid(const struct mm *mm)
{
	return pin_index_is_valid(mm, record_range);
}
