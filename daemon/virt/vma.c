/* SPDX-License-Identifier: MIT */
/*
 * vma.c - virtual memory areas: records in the mm file (truth) and a red-black tree (index).
 *
 * Every change of records is one of
 *   - a record born: filled while FREE, then its state stored LIVE;
 *   - flags and prot changed: one 64-bit store;
 *   - several records replaced by several: the new ones are filled as BORN, the lists go to the
 *     header's transaction, the store of `armed` commits, the states are stored, `armed` is
 *     cleared. Recovery replays an armed transaction, and frees BORN records without one.
 * So the records always describe the address space before or after a step, never between.
 *
 * Invariants: the tree's VMAs are disjoint, each has a LIVE record with its numbers.
 */
#include <errno.h>

#include "daemon/virt/file.h"

static int vma_compare(const struct vma *a, const struct vma *b)
{
	return a->start < b->start ? -1 : a->start > b->start;
}

RB_GENERATE(vma_tree, vma, node, vma_compare)

struct vma *vma_find(const struct mm *mm, uint64_t addr)
{
	struct vma *v = RB_ROOT(&mm->vmas), *found = NULL;

	while (v) {
		if (v->end > addr) {
			found = v;
			v = RB_LEFT(v, node);
		} else {
			v = RB_RIGHT(v, node);
		}
	}
	return found;
}

struct vma *vma_next(struct vma *v)
{
	return RB_NEXT(vma_tree, &v->mm->vmas, v);
}

struct vma *vma_prev(struct vma *v)
{
	return RB_PREV(vma_tree, &v->mm->vmas, v);
}

/* ---- records ------------------------------------------------------------------------------------- */

static int record_alloc(struct mm *mm, uint32_t *out)
{
	/* Room to give it back is reserved as it is taken. */
	if (mm->nr_free_records) {
		*out = mm->free_records[--mm->nr_free_records];
		return 0;
	}
	if (mm->record_top >= ARENA_MM_MAX_VMAS)
		return ARENA_E_NO_MEMORY;
	if (mm->record_top >= mm->cap_free_records) {
		uint32_t cap = mm->cap_free_records ? mm->cap_free_records * 2 : 16;
		uint32_t *grown =
			mem_grow(mm->free_records, mm->cap_free_records, cap, sizeof(*grown));
		if (!grown)
			return ARENA_E_NO_MEMORY;
		mm->free_records = grown;
		mm->cap_free_records = cap;
	}
	*out = mm->record_top++;
	return 0;
}

static void record_give_back(struct mm *mm, uint32_t record)
{
	mm->free_records[mm->nr_free_records++] = record;
}

static void record_fill(struct mm *mm, uint32_t record, const struct vma *v, uint32_t state)
{
	struct arena_vma_record r = {
		.start = v->start,
		.end = v->end,
		.flags = v->flags,
		.prot = v->prot,
		.pgoff = v->pgoff,
		.object = v->object   ? v->object->id
			  : v->origin ? v->origin->id
				      : 0,
		.slot = v->slot,
		.state = ARENA_VMA_FREE,
	};

	truth_fill(&mm->records[record], &r, sizeof(r));
	truth_store(&mm->records[record].state, state);
}

/* Replace the records kill[] by those of born[], which are filled as BORN already. */
static void txn_commit(struct mm *mm, const uint32_t *kill, uint32_t nr_kill, const uint32_t *born,
		       uint32_t nr_born)
{
	struct arena_vma_txn t = {.nr_kill = nr_kill, .nr_born = nr_born};
	struct arena_vma_txn *txn = &mm->header->txn;
	uint32_t i;

	memcpy(t.kill, kill, nr_kill * sizeof(*kill));
	memcpy(t.born, born, nr_born * sizeof(*born));
	truth_fill(txn, &t, sizeof(t));
	truth_store(&txn->armed, 1u);
	for (i = 0; i < nr_born; i++)
		truth_store(&mm->records[born[i]].state, (uint32_t)ARENA_VMA_LIVE);
	for (i = 0; i < nr_kill; i++)
		truth_store(&mm->records[kill[i]].state, (uint32_t)ARENA_VMA_FREE);
	truth_store(&txn->armed, 0u);
	for (i = 0; i < nr_kill; i++)
		record_give_back(mm, kill[i]);
}

/* Replace records of VMAs in kill[] (1 to 3) by one new record with v's numbers. */
static int record_replace(struct vma *v, const uint32_t *kill, uint32_t nr_kill)
{
	struct mm *mm = v->mm;
	uint32_t born;
	int r = record_alloc(mm, &born);

	if (r)
		return r;
	record_fill(mm, born, v, ARENA_VMA_BORN);
	txn_commit(mm, kill, nr_kill, &born, 1);
	v->record = born;
	return 0;
}

/* ---- the tree --------------------------------------------------------------------------------------- */

static void vma_link(struct vma *v)
{
	RB_INSERT(vma_tree, &v->mm->vmas, v);
	v->mm->nr_vmas++;
	if (v->object) {
		LIST_INSERT_HEAD(&v->object->vmas, v, in_object);
		v->object->nr_vmas++;
	} else if (v->origin) {
		LIST_INSERT_HEAD(&v->origin->snapshots, v, in_object);
		v->origin->nr_snapshots++;
		v->mm->virt->frozen.nr_snapshots++;
	}
	if (v->object || v->origin)
		slot_use(v->mm, v->slot);
}

/* Out of its object's list. */
static struct object *vma_leave_object(struct vma *v)
{
	if (v->object) {
		LIST_REMOVE(v, in_object);
		v->object->nr_vmas--;
		return v->object;
	}
	if (v->origin) {
		LIST_REMOVE(v, in_object);
		v->origin->nr_snapshots--;
		v->mm->virt->frozen.nr_snapshots--;
	}
	return v->origin;
}

/* Out of every index; may end the object. */
static void vma_unlink(struct vma *v)
{
	struct object *o = vma_leave_object(v);

	RB_REMOVE(vma_tree, &v->mm->vmas, v);
	v->mm->nr_vmas--;
	if (o) {
		slot_unuse(v->mm, v->slot);
		object_release(o);
	}
	free(v);
}

static struct vma *vma_new(struct mm *mm, const struct vma_template *t)
{
	struct vma *v = mem_alloc(sizeof(*v));

	if (v) {
		v->mm = mm;
		v->start = t->start;
		v->end = t->end;
		v->flags = t->flags;
		v->prot = t->prot;
		v->pgoff = t->pgoff;
		v->object = t->object;
		v->origin = t->origin;
		v->slot = t->slot;
		if (t->object && t->object->file)
			v->error_seq = t->object->file->error_seq;
	}
	return v;
}

int vma_insert(struct mm *mm, const struct vma_template *t)
{
	struct vma *v, *next = vma_find(mm, t->start), *prev;
	int r;

	ASSERT(!next || next->start >= t->end);
	v = vma_new(mm, t);
	if (!v)
		return ARENA_E_NO_MEMORY;
	prev = next ? vma_prev(next) : RB_MAX(vma_tree, &mm->vmas);
	/* The commonest case by far grows a neighbour in place: one store of its end. */
	if (prev && vma_alike(prev, v) && !(next && vma_alike(v, next))) {
		prev->end = t->end;
		truth_store(&mm->records[prev->record].end, t->end);
		vma_count(v, 1);
		free(v);
		return 0;
	}
	r = record_alloc(mm, &v->record);
	if (r) {
		free(v);
		return r;
	}
	record_fill(mm, v->record, v, ARENA_VMA_LIVE);
	vma_count(v, 1);
	vma_link(v);
	vma_merge(v);
	return 0;
}

struct vma *vma_merge(struct vma *v)
{
	struct vma *prev = vma_prev(v), *next = vma_next(v);
	uint32_t kill[3];
	uint32_t n = 0;
	struct vma merged = *v;

	if (prev && vma_alike(prev, v)) {
		kill[n++] = prev->record;
		merged.start = prev->start;
		merged.pgoff = prev->pgoff;
	} else {
		prev = NULL;
	}
	kill[n++] = v->record;
	if (next && vma_alike(v, next)) {
		kill[n++] = next->record;
		merged.end = next->end;
	} else {
		next = NULL;
	}
	/* Without memory for the record two alike neighbours stay two: harmless. */
	if (n == 1 || record_replace(&merged, kill, n))
		return v;
	if (prev) {
		prev->end = merged.end;
		prev->record = merged.record;
		if (next)
			vma_unlink(next);
		vma_unlink(v);
		return prev;
	}
	v->end = merged.end;
	v->record = merged.record;
	vma_unlink(next);
	return v;
}

int vma_split(struct vma *v, uint64_t addr)
{
	struct mm *mm = v->mm;
	struct vma low = *v, *high;
	uint32_t born[2];
	int r;

	ASSERT(addr > v->start && addr < v->end && IS_ALIGNED(addr, ARENA_PAGE_SIZE));
	high = mem_alloc(sizeof(*high));
	if (!high)
		return ARENA_E_NO_MEMORY;
	*high = *v;
	high->start = addr;
	high->pgoff += (addr - v->start) >> ARENA_PAGE_SHIFT;
	low.end = addr;
	r = record_alloc(mm, &born[0]);
	if (!r) {
		r = record_alloc(mm, &born[1]);
		if (r)
			record_give_back(mm, born[0]);
	}
	if (r) {
		free(high);
		return r;
	}
	record_fill(mm, born[0], &low, ARENA_VMA_BORN);
	record_fill(mm, born[1], high, ARENA_VMA_BORN);
	txn_commit(mm, &v->record, 1, born, 2);
	v->end = addr;
	v->record = born[0];
	high->record = born[1];
	vma_link(high);
	return 0;
}

void vma_set_access(struct vma *v, uint32_t flags, uint32_t prot)
{
	struct arena_vma_record *r = &v->mm->records[v->record];
	union {
		struct {
			uint32_t flags, prot;
		};
		uint64_t both;
	} u = {{flags, prot}};

	static_assert(offsetof(struct arena_vma_record, prot) ==
			      offsetof(struct arena_vma_record, flags) + 4,
		      "flags and prot change in one store");
	vma_count(v, -1);
	v->flags = flags;
	v->prot = prot;
	vma_count(v, 1);
	truth_store((uint64_t *)(void *)&r->flags, u.both);
}

int vma_grow_down(struct vma *v, uint64_t start)
{
	struct vma grown = *v;
	int r;

	grown.start = start;
	grown.pgoff -= (v->start - start) >> ARENA_PAGE_SHIFT;
	r = record_replace(&grown, &v->record, 1);
	if (r)
		return r;
	vma_count(v, -1);
	v->start = grown.start;
	v->pgoff = grown.pgoff;
	v->record = grown.record;
	vma_count(v, 1);
	return 0;
}

void vma_remove(struct vma *v)
{
	struct mm *mm = v->mm;

	truth_store(&mm->records[v->record].state, (uint32_t)ARENA_VMA_FREE);
	record_give_back(mm, v->record);
	vma_count(v, -1);
	vma_unlink(v);
}

int vma_isolate(struct mm *mm, uint64_t start, uint64_t end)
{
	struct vma *v = vma_find(mm, start);
	int r;

	if (v && v->start < start) {
		r = vma_split(v, start);
		if (r)
			return r;
	}
	v = vma_find(mm, end - 1);
	if (v && v->start < end && v->end > end)
		return vma_split(v, end);
	return 0;
}

/* ---- recovery ---------------------------------------------------------------------------------------- */

int vma_adopt(struct mm *mm, uint32_t record, struct object *o)
{
	const struct arena_vma_record *rec = &mm->records[record];
	struct vma_template t = {
		.start = rec->start,
		.end = rec->end,
		.pgoff = rec->pgoff,
		.flags = rec->flags,
		.prot = rec->prot,
		.slot = rec->slot,
		.object = rec->flags & VM_SNAPSHOT ? NULL : o,
		.origin = rec->flags & VM_SNAPSHOT ? o : NULL,
	};
	struct vma *v = vma_new(mm, &t);

	if (!v)
		return -ENOMEM;
	v->record = record;
	if (RB_FIND(vma_tree, &mm->vmas, v)) {
		free(v);
		return ARENA_E_EXISTS;
	}
	vma_count(v, 1);
	vma_link(v);
	return 0;
}

int vma_adopt_free_records(struct mm *mm, uint32_t top)
{
	uint32_t i;

	mm->free_records = mem_array(MAX(top, 16u), sizeof(*mm->free_records));
	if (!mm->free_records)
		return -ENOMEM;
	mm->cap_free_records = MAX(top, 16u);
	mm->record_top = top;
	for (i = top; i--;)
		if (mm->records[i].state == ARENA_VMA_FREE)
			record_give_back(mm, i);
	return 0;
}

void vma_forget(struct vma *v)
{
	vma_count(v, -1);
	RB_REMOVE(vma_tree, &v->mm->vmas, v);
	vma_leave_object(v);
	free(v);
}

/* ---- the end ------------------------------------------------------------------------------------------- */

void vma_free_all(struct mm *mm)
{
	struct vma *v;

	while ((v = RB_MIN(vma_tree, &mm->vmas)))
		vma_remove(v);
	free(mm->free_records);
}
