/* SPDX-License-Identifier: MIT */
/*
 * valid.c - virt_is_valid(): every index against the truth, every count against every entry.
 *
 * One pass over all page tables and objects counts, per frame, the entries and the references that
 * must be there (entries, objects, limbo); then mem_map has to say the same.
 */
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

struct counts {
	uint32_t *refs, *maps, *limbo, *locks, *pins; /* per pfn, of heads */
	uint64_t mlocked;
	uint64_t committed;
	uint64_t nr;
	unsigned snapshots; /* VMAs */
	bool ok;
};

struct mm_check {
	struct counts *c;
	uint64_t anon, file, shmem, direct, leaves;
};

#define COMPLAIN(c, ...)                                                \
	do {                                                            \
		if ((c)->ok) {                                          \
			fprintf(stderr, "virt_is_valid: " __VA_ARGS__); \
			fputc('\n', stderr);                            \
		}                                                       \
		(c)->ok = false;                                        \
	} while (0)

static void check_zero_entry(struct mm *mm, uint64_t addr, const struct pte_ref *ref,
			     struct counts *c)
{
	const struct vma *v = vma_find(mm, addr);
	uint64_t page = arena_pte_pfn(*ref->entry) - mm->virt->zero_pfn;

	if (!v || v->start > addr || v->object || v->flags & (VM_SHARED | VM_SPECIAL))
		COMPLAIN(c, "mm %u: zeros at %#lx", mm->id, (unsigned long)addr);
	if (page >= (ref->level ? 1 : ARENA_LEAF_PAGES) || *ref->entry & ARENA_PTE_WRITE ||
	    arena_pte_slot(*ref->entry) != ARENA_SLOT_ZERO || !mm->header->uses_zero)
		COMPLAIN(c, "mm %u: entry %#lx of zeros at %#lx", mm->id,
			 (unsigned long)*ref->entry, (unsigned long)addr);
}

/* An entry that may write is of a dirty page, which tells so when it was written meanwhile. */
static void check_file_entry(const struct mm *mm, const struct vma *v, uint64_t addr,
			     uint64_t entry, pfn_t pfn, struct counts *c)
{
	if (v && v->object && v->object->file && v->flags & VM_SHARED && entry & ARENA_PTE_WRITE &&
	    !file_may_write(mm->virt, pfn))
		COMPLAIN(c, "mm %u: entry at %#lx may write to a clean page", mm->id,
			 (unsigned long)addr);
}

/* What a snapshot holds, and who may write to what others do. */
static void check_frozen_entry(const struct mm *mm, const struct vma *v, uint64_t addr,
			       const struct pte_ref *ref, pfn_t pfn, const struct page *page,
			       struct counts *c)
{
	unsigned n = ref->level ? ARENA_LEAF_PAGES : 1;

	if (!v || !(page->flags & PG_OBJECT))
		return;
	if (v->origin && *ref->entry & ARENA_PTE_WRITE)
		COMPLAIN(c, "mm %u: a snapshot may write to an object's frame at %#lx", mm->id,
			 (unsigned long)addr);
	if (v->origin && page->mapping &&
	    (page->mapping != v->origin->id || !(page->flags & PG_FROZEN)))
		COMPLAIN(c, "mm %u: a snapshot has a frame at %#lx that is not frozen", mm->id,
			 (unsigned long)addr);
	if (!v->object && !v->origin)
		COMPLAIN(c, "mm %u: an object's frame at %#lx, in a VMA of none", mm->id,
			 (unsigned long)addr);
	if (v->object && *ref->entry & ARENA_PTE_WRITE && page->flags & PG_FROZEN &&
	    frozen_is_held(v->object, vma_pgoff(v, addr), pfn, n))
		COMPLAIN(c, "mm %u: entry at %#lx may write to what a snapshot holds", mm->id,
			 (unsigned long)addr);
}

static int check_entry(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	struct mm_check *k = arg;
	struct counts *c = k->c;
	uint64_t entry = *ref->entry, pages = ref->level ? ARENA_LEAF_PAGES : 1;
	pfn_t pfn = (pfn_t)arena_pte_pfn(entry), head;
	const struct vma *v = vma_find(mm, addr);
	const struct object *o = v ? v->object ? v->object : v->origin : NULL;
	const struct page *page;
	unsigned slot = arena_pte_slot(entry);

	if (entry_is_zero(mm->virt, entry)) {
		check_zero_entry(mm, addr, ref, c);
		return 0;
	}
	head = pfn < c->nr ? frame_head(mm->virt, pfn) : PFN_NONE;
	if (head == PFN_NONE) {
		COMPLAIN(c, "mm %u: entry at %#lx points to free frame %u", mm->id,
			 (unsigned long)addr, pfn);
		return 0;
	}
	page = pfn_to_page(mm->virt->phys, head);
	c->refs[head]++;
	c->maps[head]++;
	c->locks[head] += v && v->flags & VM_LOCKED;
	if (!v || v->start > addr)
		COMPLAIN(c, "mm %u: entry at %#lx outside every VMA", mm->id, (unsigned long)addr);
	if (slot >= mm->nr_slots || mm->slots[slot].domain != pfn_domain(mm->virt->phys, pfn))
		COMPLAIN(c, "mm %u: frame %u at %#lx is not in slot %u's domain", mm->id, pfn,
			 (unsigned long)addr, slot);
	else if (mm->slots[slot].readonly && (entry & ARENA_PTE_WRITE))
		COMPLAIN(c, "mm %u: writable entry in a read-only slot", mm->id);
	if ((page->flags & PG_ANON && page->mapping != mm->anon_family) ||
	    (page->flags & PG_KERNEL && page->mapping != mm->id))
		COMPLAIN(c, "frame %u belongs to mm %u, mapped by %u", head, page->mapping, mm->id);
	if (v && (page->flags & PG_KERNEL) != (v->flags & VM_SPECIAL ? PG_KERNEL : 0u))
		COMPLAIN(c, "mm %u: frame %u at %#lx, in a VMA of another kind", mm->id, head,
			 (unsigned long)addr);
	if (v && VM_IS_PFN_MAP(v->flags) && vma_pgoff(v, addr) != pfn)
		COMPLAIN(c, "mm %u: frame %u at %#lx, not %lu", mm->id, pfn, (unsigned long)addr,
			 (unsigned long)vma_pgoff(v, addr));
	check_file_entry(mm, v, addr, entry, pfn, c);
	check_frozen_entry(mm, v, addr, ref, pfn, page, c);
	if (ref->level)
		k->leaves++;
	if (page->flags & PG_OBJECT)
		*(o && o->file ? &k->file : &k->shmem) += pages;
	else if (page->flags & PG_ANON)
		k->anon += pages;
	else
		k->direct += pages;
	return 0;
}

static void check_tables(struct mm *mm, uint32_t table, struct counts *c, uint32_t *seen)
{
	const uint64_t *e = pgtable_entries(mm, table);
	const struct table_info *t = &mm->tables[table];
	unsigned i, used = 0;

	(*seen)++;
	for (i = 0; i < ARENA_PTRS_PER_TABLE; i++) {
		uint32_t child;

		if (!e[i])
			continue;
		used++;
		if (!t->level || (e[i] & ARENA_PTE_HUGE))
			continue;
		child = (uint32_t)arena_pte_pfn(e[i]);
		if (mm->tables[child].parent != table || mm->tables[child].index != i ||
		    mm->tables[child].level + 1 != t->level)
			COMPLAIN(c, "mm %u: table %u is not where its parent says", mm->id, child);
		else
			check_tables(mm, child, c, seen);
	}
	if (used != t->used)
		COMPLAIN(c, "mm %u: table %u has %u entries, %u counted", mm->id, table, used,
			 t->used);
}

/* Count v into an mm that has nothing else. */
static void count_vma(struct mm *sums, const struct vma *v)
{
	struct vma copy = *v;

	copy.mm = sums;
	vma_count(&copy, 1);
}

static void check_vmas(struct mm *mm, struct counts *c)
{
	struct vma *v;
	struct mm sums = {.virt = mm->virt, .id = mm->id};
	uint64_t last = 0, committed = mm->virt->committed;
	uint32_t n = 0, live = 0, i;

	RB_FOREACH(v, vma_tree, &mm->vmas) {
		const struct arena_vma_record *r = &mm->records[v->record];
		const struct object *o = v->object ? v->object : v->origin;

		if (v->start < last || v->end <= v->start)
			COMPLAIN(c, "mm %u: VMAs overlap at %#lx", mm->id, (unsigned long)v->start);
		if (r->state != ARENA_VMA_LIVE || r->start != v->start || r->end != v->end ||
		    r->flags != v->flags || r->prot != v->prot || r->slot != v->slot ||
		    r->pgoff != v->pgoff || r->object != (o ? o->id : 0) ||
		    !(v->flags & VM_SNAPSHOT) != !v->origin)
			COMPLAIN(c, "mm %u: VMA %#lx differs from its record", mm->id,
				 (unsigned long)v->start);
		last = v->end;
		n++;
		count_vma(&sums, v);
	}
	for (i = 0; i < mm->record_top; i++)
		live += mm->records[i].state != ARENA_VMA_FREE;
	if (n != mm->nr_vmas || live != n || mm->record_top - mm->nr_free_records != n)
		COMPLAIN(c, "mm %u: %u VMAs, %u counted, %u records", mm->id, n, mm->nr_vmas, live);
	c->committed += mm->virt->committed - committed;
	mm->virt->committed = committed;
	if (sums.total_vm != mm->total_vm || sums.data_vm != mm->data_vm ||
	    sums.exec_vm != mm->exec_vm || sums.stack_vm != mm->stack_vm ||
	    sums.locked_vm != mm->locked_vm || mm->header->txn.armed)
		COMPLAIN(c, "mm %u: total_vm and its parts, or an open transaction", mm->id);
}

static void count_pin(void *arg, pfn_t head)
{
	struct counts *c = arg;

	if (head < c->nr) {
		c->refs[head]++;
		c->pins[head]++;
	} else {
		COMPLAIN(c, "a pinned frame is free");
	}
}

static void check_slots(struct mm *mm, struct counts *c)
{
	uint32_t i, lingering = 0;

	for (i = 0; i < mm->nr_slots; i++) {
		const struct slot *s = &mm->slots[i];
		const struct arena_slot_record *r = &mm->slot_records[i];

		if (r->domain != (s->domain ? domain_id(s->domain) : 0) ||
		    (s->domain && r->readonly != s->readonly))
			COMPLAIN(c, "mm %u: slot %u differs from its record", mm->id, i);
		if (s->linger && (s->users || !s->domain || s->linger > mm->posted))
			COMPLAIN(c, "mm %u: slot %u lingers for no reason", mm->id, i);
		if (!s->users && s->domain && !s->linger)
			COMPLAIN(c, "mm %u: slot %u has no users", mm->id, i);
		lingering += s->linger != 0;
	}
	if (lingering != mm->nr_lingering)
		COMPLAIN(c, "mm %u: %u slots linger, %u counted", mm->id, lingering,
			 mm->nr_lingering);
}

static void check_handles(struct mm *mm, struct counts *c)
{
	uint32_t i;

	for (i = 0; i < mm->nr_handles; i++) {
		const struct handle *h = &mm->handles[i];
		const struct arena_handle_record *r = &mm->handle_records[i];

		if (r->object != (h->object ? h->object->id : 0) ||
		    (h->object && (r->slot != h->slot || r->writable != h->writable)))
			COMPLAIN(c, "mm %u: handle %u differs from its record", mm->id, i + 1);
		if (h->object && mm->slots[h->slot].domain != h->object->domain)
			COMPLAIN(c, "mm %u: handle %u has a wrong slot", mm->id, i + 1);
	}
}

/* Handles and VMAs use what they say they use. */
static void check_users(struct mm *mm, struct counts *c)
{
	uint32_t i, users = 1, found = 0; /* slot 0 is the mm's own */
	struct vma *v;

	for (i = 0; i < mm->nr_slots; i++)
		found += mm->slots[i].users;
	for (i = 0; i < mm->nr_handles; i++)
		users += mm->handles[i].object != NULL;
	RB_FOREACH(v, vma_tree, &mm->vmas)
		users += v->object || v->origin;
	if (users != found)
		COMPLAIN(c, "mm %u: slots have %u users, %u counted", mm->id, users, found);
}

static void check_header(const struct mm *mm, struct counts *c)
{
	const struct arena_mm_header *h = mm->header;

	if (h->magic != ARENA_MM_MAGIC || h->mm_id != mm->id || h->next_seq != mm->posted ||
	    h->anon_family != mm->anon_family)
		COMPLAIN(c, "mm %u: header", mm->id);
	if (!policy_is_valid(mm->virt, h))
		COMPLAIN(c, "mm %u: policy %u of nodes %llx", mm->id, h->policy_mode,
			 (unsigned long long)h->policy_nodes);
	if (mm->record->id != mm->id ||
	    (mm->record->state != MM_LIVE && mm->record->state != MM_FORKED) ||
	    mm->record->domain != domain_id(mm->domain))
		COMPLAIN(c, "mm %u: record", mm->id);
}

/* Returns the tables that are there. A condemned client is never asked to flush. */
static uint32_t check_limbo(struct mm *mm, struct counts *c)
{
	uint32_t i, tables = 0;
	uint64_t limbo = 0, last = 0;

	for (i = 0; i < mm->limbo.count; i++) {
		const struct limbo_item *it =
			&mm->limbo.ring[(mm->limbo.head + i) & (mm->limbo.capacity - 1)];

		if (!mm->condemned &&
		    (it->seq < last || it->seq > mm->posted || it->seq <= mm->acked))
			COMPLAIN(c, "mm %u: limbo out of order", mm->id);
		last = it->seq;
		if (it->kind == LIMBO_TABLE) {
			tables++;
			continue;
		}
		c->refs[it->number]++;
		c->limbo[it->number]++;
		limbo += it->pages;
		if (!(pfn_to_page(mm->virt->phys, it->number)->flags & PG_LIMBO))
			COMPLAIN(c, "frame %u in limbo is not marked", it->number);
	}
	if (limbo != mm->limbo.pages)
		COMPLAIN(c, "mm %u: limbo pages are off", mm->id);
	return tables;
}

static void count_job(void *ctx, pfn_t block)
{
	struct counts *c = ctx;

	c->refs[block]++;
}

static void check_mm(struct mm *mm, struct counts *c)
{
	struct mm_check k = {.c = c};
	uint32_t tables = check_limbo(mm, c);

	pgtable_walk(mm, 0, UINT64_C(1) << 47, check_entry, &k);
	if (k.anon != mm->rss_anon || k.file != mm->rss_file || k.shmem != mm->rss_shmem ||
	    k.direct != mm->direct_pages || k.leaves != mm->leaves)
		COMPLAIN(c, "mm %u: rss counts are off", mm->id);
	cow_for_each_block(mm, count_job, c);
	mm_for_each_pin(mm, count_pin, c);
	if (!mm_pins_are_valid(mm))
		COMPLAIN(c, "mm %u: the index of its pins", mm->id);
	check_tables(mm, 0, c, &tables);
	if (tables != mm->nr_live_tables)
		COMPLAIN(c, "mm %u: %u tables found, %u counted", mm->id, tables,
			 mm->nr_live_tables);
	check_vmas(mm, c);
	check_slots(mm, c);
	check_handles(mm, c);
	check_users(mm, c);
	check_header(mm, c);
}

/* A hold is granted to the first request only, and the record says to whom. */
static void check_hold(const struct object *o, struct counts *c)
{
	const struct file_request *r = TAILQ_FIRST(&o->file->requests);
	bool held = r && r->hold && r->granted;

	if (!!o->record->writer != held)
		COMPLAIN(c, "file %u: its record's writer", o->id);
	if (o->file->pass.state == PASS_HELD && !held)
		COMPLAIN(c, "file %u: held by nobody", o->id);
	while (r && (r = TAILQ_NEXT(r, link)))
		if (r->granted)
			COMPLAIN(c, "file %u: held in the queue", o->id);
}

static void check_file(const struct object *o, uint64_t dirty, struct counts *c)
{
	const struct file_io *io;
	struct chunk *chunk;

	if (dirty != o->file->nr_dirty)
		COMPLAIN(c, "file %u: %lu dirty pages, %lu counted", o->id, (unsigned long)dirty,
			 (unsigned long)o->file->nr_dirty);
	if (o->record->dev != o->file->key[1] || o->record->ino != o->file->key[2])
		COMPLAIN(c, "file %u: its record is another's", o->id);
	if ((o->file->pass.state != PASS_IDLE && o->file->pass.state != PASS_HELD &&
	     o->file->pass.state != PASS_SETTLING) != (o->file->pass.io != NULL) ||
	    (o->file->pass.io && TAILQ_EMPTY(&o->file->requests)))
		COMPLAIN(c, "file %u: its write-back", o->id);
	check_hold(o, c);
	LIST_FOREACH(io, &o->file->ios, in_file)
		for (unsigned i = 0; i < io->nr; i++) {
			c->refs[io->pfn[i]]++;
			if (io->kind == FILE_READ &&
			    (pfn_to_page(o->virt->phys, io->pfn[i])->mapping ||
			     object_frame((struct object *)o, io->pgoff[i], &chunk) != PFN_NONE))
				COMPLAIN(c, "file %u: page %u is read and there", o->id,
					 io->pgoff[i]);
		}
}

static void check_object(struct object *o, struct counts *c)
{
	struct chunk *k, *next;
	struct vma *v;
	uint64_t pages = 0, dirty = 0;
	unsigned vmas = 0, snapshots = 0;

	LIST_FOREACH(v, &o->vmas, in_object)
		vmas++;
	LIST_FOREACH(v, &o->snapshots, in_object)
		snapshots++;
	c->snapshots += snapshots;
	HASH_ITER(hh, o->chunks, k, next) {
		unsigned i;

		for (i = 0; i < ARENA_LEAF_PAGES; i++) {
			pfn_t pfn = k->leaf != PFN_NONE ? k->leaf : k->pages[i];
			const struct page *page;

			if (pfn == PFN_NONE)
				continue;
			page = pfn_to_page(o->virt->phys, pfn);
			if (!page || !page->refcount || !(page->flags & PG_OBJECT) ||
			    page->mapping != o->id ||
			    page->index != k->index * ARENA_LEAF_PAGES + i) {
				COMPLAIN(c, "object %u: frame %u is not its own", o->id, pfn);
				break;
			}
			if (pfn_domain(o->virt->phys, pfn) != o->domain)
				COMPLAIN(c, "object %u: frame %u of another domain", o->id, pfn);
			c->refs[pfn]++;
			dirty += !!(page->flags & PG_DIRTY);
			if (k->leaf != PFN_NONE) {
				pages += ARENA_LEAF_PAGES;
				break;
			}
			pages++;
		}
	}
	if (o->file)
		check_file(o, dirty, c);
	if (pages != o->nr_pages || vmas != o->nr_vmas || snapshots != o->nr_snapshots ||
	    o->record->size != o->size || o->record->kind != o->kind)
		COMPLAIN(c, "object %u: counts or record differ", o->id);
}

/* Private memory that is pinned has no second entry. */
static void check_pinned(struct virt *v, pfn_t head, const struct page *page, struct counts *c)
{
	if ((page->flags & (PG_PINNED | PG_ANON)) == (PG_PINNED | PG_ANON) &&
	    page->mapcount > 1u << page_order(page))
		COMPLAIN(c, "frame %u of node %u is pinned and shared", head,
			 pfn_zone(v->phys, head)->node);
}

/* What /proc/meminfo says is locked. */
static void check_mlocked(struct virt *v, struct counts *c)
{
	uint64_t sum = 0;
	unsigned n, z;

	for (n = 0; n < phys_nr_nodes(v->phys); n++)
		for (z = 0; z < NR_ZONE_TYPES; z++)
			sum += phys_node(v->phys, n)->zone[z].stat[NR_MLOCK];
	if (sum != c->mlocked)
		COMPLAIN(c, "%lu pages are locked, %lu counted", (unsigned long)c->mlocked,
			 (unsigned long)sum);
}

static void check_frames(struct virt *v, struct counts *c)
{
	uint64_t pfn;

	for (pfn = 0; pfn < c->nr; pfn++) {
		const struct page *page;
		uint32_t refs, maps;

		/* Reading mem_map of a section that was never used would have the host back it. */
		if (!v->state->sections[pfn / phys_section_pages(v->phys)].initialised)
			continue;
		page = pfn_to_page(v->phys, (pfn_t)pfn);
		refs = page ? page->refcount : 0;
		maps = refs ? page->mapcount : 0;
		if (refs != c->refs[pfn] || maps != c->maps[pfn])
			COMPLAIN(c, "frame %lu: %u references of %u, %u entries of %u",
				 (unsigned long)pfn, refs, c->refs[pfn], maps, c->maps[pfn]);
		if (!refs)
			continue;
		if (page->private_ != c->limbo[pfn])
			COMPLAIN(c, "frame %lu: in %u limbos of %u", (unsigned long)pfn,
				 page->private_, c->limbo[pfn]);
		if (page_pins(page) != c->pins[pfn] ||
		    (page->flags & PG_MLOCKED ? page->mlock_count : 0) != c->locks[pfn])
			COMPLAIN(c, "frame %lu (flags %x): %u pins of %u, %u locks of %u",
				 (unsigned long)pfn, page->flags, page_pins(page), c->pins[pfn],
				 page->flags & PG_MLOCKED ? page->mlock_count : 0, c->locks[pfn]);
		check_pinned(v, (pfn_t)pfn, page, c);
		c->mlocked += page->flags & PG_MLOCKED ? UINT64_C(1) << page_order(page) : 0;
	}
}

static void check_settling(struct virt *v, struct counts *c)
{
	const struct settle *s;
	struct object *o;
	struct mm *mm;
	unsigned live = 0, of_mms = 0, objects = 0, of_objects = 0;

	LIST_FOREACH(s, &v->frozen.settling, link) {
		live += !s->ended;
		objects += s->ended ? 0 : s->nr_objects;
		if (!s->ended != (s->wait.pending != 0))
			COMPLAIN(c, "mm %u: a snapshot settles for nobody", s->mm->id);
	}
	LIST_FOREACH(mm, &v->mms, link)
		of_mms += mm->nr_settling;
	LIST_FOREACH(o, &v->objects, link)
		of_objects += o->nr_settling;
	if (live != of_mms || objects != of_objects || c->snapshots != v->frozen.nr_snapshots)
		COMPLAIN(c, "snapshots that settle, or their VMAs, are counted wrong");
}

static void check_all(struct virt *v, struct counts *c)
{
	struct mm *mm;
	struct object *o;
	uint64_t limbo = 0;
	uint32_t pending = 0;

	LIST_FOREACH(mm, &v->mms, link) {
		check_mm(mm, c);
		limbo += mm->limbo.pages;
		pending += mm_flush_pending(mm);
	}
	LIST_FOREACH(mm, &v->condemned, link) {
		check_limbo(mm, c);
		limbo += mm->limbo.pages;
	}
	LIST_FOREACH(o, &v->objects, link) {
		check_object(o, c);
		c->committed += o->accounted;
	}
	check_settling(v, c);
	if (c->committed != v->committed)
		COMPLAIN(c, "%lu pages are committed, %lu counted", (unsigned long)c->committed,
			 (unsigned long)v->committed);
	check_frames(v, c);
	check_mlocked(v, c);
	if (limbo != v->limbo_pages || pending != v->nr_pending)
		COMPLAIN(c, "limbo or pending clients are off");
}

bool virt_is_valid(struct virt *v)
{
	struct counts c = {.nr = phys_nr_frames(v->phys), .ok = true};
	uint32_t **array[] = {&c.refs, &c.maps, &c.limbo, &c.locks, &c.pins};
	unsigned i;

	/* Sparse as the arena is: pages of these that are not touched cost nothing. */
	for (i = 0; i < ARRAY_SIZE(array); i++) {
		*array[i] = calloc(c.nr, sizeof(**array[i]));
		if (!*array[i])
			fprintf(stderr, "virt_is_valid: no memory to check\n");
		c.ok &= *array[i] != NULL;
	}
	if (c.ok)
		check_all(v, &c);
	for (i = 0; i < ARRAY_SIZE(array); i++)
		free(*array[i]);
	return phys_is_valid(v->phys) && c.ok;
}
