/* SPDX-License-Identifier: MIT */
/*
 * mm.c - address spaces: making one with its two files, its layout, its end.
 *
 * Layout of a window of size S at W:
 *
 *   W            segments, bottom-up, the same in every client
 *   W + S/4      heap (brk), bottom-up
 *   W + 3S/8     direct map of arena_alloc_pages(), as large as the arena, if it fits by 5S/8
 *   ...          mappings, top-down from W + S - S/64
 *   W + S - S/64 left for stacks
 */
#include <errno.h>
#include <sys/random.h>
#include <unistd.h>

#include "daemon/store/store.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"
#include "daemon/virt/resume.h"

int virt_create(struct phys *p, struct virt **out)
{
	struct virt *v = mem_alloc(sizeof(*v));

	if (!v)
		return ARENA_E_NO_MEMORY;
	v->phys = p;
	v->state = phys_state(p);
	v->limit = limit_of_process;
	files_init(v);
	LIST_INIT(&v->mms);
	LIST_INIT(&v->condemned);
	LIST_INIT(&v->objects);
	LIST_INIT(&v->frozen.settling);
	LIST_INIT(&v->frozen.waits);
	zero_init(v);
	*out = v;
	return 0;
}

struct virt *virt_destroy(struct virt *v)
{
	struct object *o, *next;
	unsigned i;

	if (!v)
		return NULL;
	BUG_ON(!LIST_EMPTY(&v->mms));
	while (!LIST_EMPTY(&v->condemned))
		mm_destroy(LIST_FIRST(&v->condemned));
	virt_files_stop(v);
	for (o = LIST_FIRST(&v->objects); o; o = next) {
		next = LIST_NEXT(o, link);
		if (o->kind == OBJECT_SEGMENT && !o->record->unlinked) {
			HASH_DELETE(by_name, v->names, o);
			o->record->unlinked = 1;
		}
		object_release(o);
	}
	for (i = 0; i < VIRT_KEPT_DOMAINS; i++)
		domain_put(v->kept[i]);
	zero_exit(v, true);
	phys_set_pressure_ops(v->phys, NULL, NULL);
	free(v);
	return NULL;
}

struct phys *virt_phys(struct virt *v)
{
	return v->phys;
}

/* ---- making ------------------------------------------------------------------------------------------ */

static void layout(struct arena_mm_header *h, const struct mm_params *p, uint64_t nr_frames)
{
	uint64_t w = p->window_base, s = p->window_size, arena = nr_frames << ARENA_PAGE_SHIFT;
	uint64_t direct = ALIGN_UP(w + s / 8 * 3, ARENA_LEAF_SIZE);

	h->window_base = w;
	h->window_size = s;
	/* Elsewhere the common addresses mean nothing. */
	h->segment_base = w == ARENA_WINDOW_BASE ? w : w + s / 4;
	h->segment_end = w + s / 4;
	h->start_brk = h->brk = w + s / 4;
	h->brk_limit = w + s / 8 * 3;
	h->mmap_floor = direct;
	if (arena <= s / 4) {
		h->direct_base = direct;
		h->mmap_floor = ALIGN_UP(direct + arena, ARENA_LEAF_SIZE) + ARENA_LEAF_SIZE;
	}
	h->mmap_base = ALIGN_DOWN(w + s - s / 64, ARENA_LEAF_SIZE);
	h->arena_frames = nr_frames;
}

/* A copy looks like what it is a copy of. */
static void inherit_layout(struct arena_mm_header *h, const struct arena_mm_header *from)
{
	h->anon_family = from->anon_family;
	h->window_base = from->window_base;
	h->window_size = from->window_size;
	h->segment_base = from->segment_base;
	h->segment_end = from->segment_end;
	h->start_brk = from->start_brk;
	h->brk_limit = from->brk_limit;
	h->brk = from->brk;
	h->direct_base = from->direct_base;
	h->mmap_base = from->mmap_base;
	h->mmap_floor = from->mmap_floor;
	h->arena_frames = from->arena_frames;
	h->uses_zero = from->uses_zero;
	h->policy_nodes = from->policy_nodes;
	h->policy_mode = from->policy_mode;
}

int mm_map_files(struct mm *mm)
{
	void *at;
	int r = os_map(mm->file, 0, ARENA_MM_FILE_SIZE, OS_MAP_READ | OS_MAP_WRITE, &at);

	if (r)
		return r;
	mm->base = at;
	mm->header = at;
	mm->records = (struct arena_vma_record *)(void *)(mm->base + ARENA_MM_VMAS_OFFSET);
	mm->handle_records =
		(struct arena_handle_record *)(void *)(mm->base + ARENA_MM_HANDLES_OFFSET);
	mm->slot_records = (struct arena_slot_record *)(void *)(mm->base + ARENA_MM_SLOTS_OFFSET);
	r = os_map(mm->channel_file, 0, ARENA_CHANNEL_SIZE, OS_MAP_READ | OS_MAP_WRITE, &at);
	if (r)
		return r;
	mm->channel = at;
	mm->flush_ring = (struct arena_flush_entry *)(void *)((uint8_t *)at + ARENA_CHANNEL_FLUSH);
	return 0;
}

static int files_open(struct mm *mm)
{
	char name[32];
	int r;

	snprintf(name, sizeof(name), "mm:%u", mm->id);
	mm->file = os_memfd(name, ARENA_MM_FILE_SIZE);
	if (mm->file < 0)
		return mm->file;
	snprintf(name, sizeof(name), "channel:%u", mm->id);
	mm->channel_file = os_memfd(name, ARENA_CHANNEL_SIZE);
	if (mm->channel_file < 0)
		return mm->channel_file;
	r = mm_map_files(mm);
	if (r)
		return r;
	mm->channel->abi_major = ARENA_ABI_MAJOR;
	mm->channel->abi_minor = ARENA_ABI_MINOR;
	mm->channel->magic = ARENA_CHANNEL_MAGIC;
	return 0;
}

static struct mm_record *record_find(struct state *s)
{
	uint32_t i;

	for (i = 0; i < STATE_MAX_MMS; i++)
		if (!s->mms[i].state)
			return &s->mms[i];
	return NULL;
}

static int header_write(struct mm *mm, const struct mm_params *p)
{
	struct state *s = mm->virt->state;
	struct arena_mm_header h = {
		.abi_major = ARENA_ABI_MAJOR,
		.abi_minor = ARENA_ABI_MINOR,
		.mm_id = mm->id,
		.anon_family = mm->id,
	};

	mm->record = record_find(s);
	if (!mm->record)
		return ARENA_E_TOO_MANY;
	h.record = (uint32_t)(mm->record - s->mms);
	mm->anon_family = h.anon_family;
	if (p->parent)
		inherit_layout(&h, p->parent->header);
	else
		layout(&h, p, phys_nr_frames(mm->virt->phys));
	mm->anon_family = h.anon_family;
	if (getrandom(h.token, sizeof(h.token), 0) != sizeof(h.token))
		return -EIO;
	truth_fill(mm->header, &h, sizeof(h));
	truth_store(&mm->header->magic, ARENA_MM_MAGIC);
	mm->search_from = h.mmap_base;
	return 0;
}

uint32_t checksum_add(uint32_t sum, const void *bytes, size_t n)
{
	const uint8_t *b = bytes;

	sum ^= 0x811c9dc5u;
	while (n--)
		sum = (sum ^ *b++) * 0x01000193u;
	return sum;
}

uint32_t mm_checksum(const struct mm_record *r, enum mm_state state)
{
	uint32_t sum = checksum_add((uint32_t)state, &r->id, sizeof(r->id));

	sum = checksum_add(sum, &r->uid, sizeof(r->uid));
	sum = checksum_add(sum, &r->gid, sizeof(r->gid));
	sum = checksum_add(sum, &r->domain, sizeof(r->domain));
	if (state == MM_FORKED)
		return sum;
	sum = checksum_add(sum, &r->pid, sizeof(r->pid));
	sum = checksum_add(sum, &r->start_time, sizeof(r->start_time));
	return checksum_add(sum, r->comm, sizeof(r->comm));
}

static void record_enter(struct mm_record *r, enum mm_state state)
{
	union {
		struct {
			uint32_t state, checksum;
		};
		uint64_t both;
	} u = {{state, mm_checksum(r, state)}};

	truth_store((uint64_t *)(void *)&r->state, u.both);
}

static int record_write(struct mm *mm, const struct mm_params *p)
{
	int e;
	struct mm_record r = {
		.id = mm->id,
		.pid = (uint32_t)p->cred->pid,
		.uid = p->cred->uid,
		.gid = p->cred->gid,
		.domain = domain_id(mm->domain),
		.peer = p->peer,
		.start_time = p->start_time,
	};

	snprintf(r.comm, sizeof(r.comm), "%s", p->comm ? p->comm : "");
	mm->kept = true;
	e = store_add_number("mm", mm->id, mm->file);
	if (!e)
		e = store_add_number("channel", mm->id, mm->channel_file);
	if (e)
		return e;
	truth_fill(mm->record, &r, sizeof(r));
	record_enter(mm->record, p->parent ? MM_FORKED : MM_LIVE);
	return 0;
}

int mm_adopt(struct mm *mm, const struct credentials *cred, const char *comm, uint32_t peer,
	     uint64_t start_time)
{
	struct mm_record *r = mm->record;
	char name[sizeof(r->comm)] = "";

	CONTROL_THREAD();
	if (r->state != MM_FORKED || cred->uid != r->uid)
		return ARENA_E_PERMISSION;
	snprintf(name, sizeof(name), "%s", comm ? comm : "");
	truth_store(&r->pid, (uint32_t)cred->pid);
	truth_store(&r->start_time, start_time);
	truth_store(&r->peer, peer);
	truth_fill(r->comm, name, sizeof(name));
	record_enter(r, MM_LIVE);
	return 0;
}

void domain_keep(struct virt *v, struct domain *d)
{
	struct domain **slot = &v->kept[v->next_kept];
	unsigned i;

	for (i = 0; i < VIRT_KEPT_DOMAINS; i++)
		if (v->kept[i] == d)
			return;
	domain_put(*slot);
	*slot = domain_get(d);
	v->next_kept = (v->next_kept + 1) % VIRT_KEPT_DOMAINS;
}

static int domain_for(struct virt *v, const struct mm_params *p, uint32_t mm_id,
		      struct domain **out)
{
	if (p->parent) {
		*out = domain_get(p->parent->domain);
		return 0;
	}
	if (p->process_domain)
		return domain_create(v->phys, DOMAIN_PROCESS, mm_id, out);
	*out = domain_find(v->phys, DOMAIN_UID, p->cred->uid);
	if (!*out) {
		int r = domain_create(v->phys, DOMAIN_UID, p->cred->uid, out);

		if (r)
			return r;
	}
	domain_keep(v, *out);
	return 0;
}

bool mm_window_ok(uint64_t base, uint64_t size)
{
	return IS_ALIGNED(base, ARENA_WINDOW_ALIGN) && IS_ALIGNED(size, ARENA_WINDOW_ALIGN) &&
	       size >= ARENA_WINDOW_SIZE_MIN &&
	       /* a frame's index in its mm is 32 bits */
	       size <= ARENA_PAGE_SIZE << 32 && base && base < UINT64_C(1) << 47 &&
	       base + size <= UINT64_C(1) << 47;
}

void mm_init(struct mm *mm, struct virt *v, uint32_t id)
{
	*mm = (struct mm){.virt = v, .id = id, .file = -1, .channel_file = -1};
	RB_INIT(&mm->vmas);
	TAILQ_INIT(&mm->waiters);
	TAILQ_INIT(&mm->cow_jobs);
}

/* The one that a worker before us made for this caller. */
static struct mm *attach_resume(struct virt *v, const struct mm_params *p)
{
	uint64_t arg[JOURNAL_ARGS];
	struct mm *mm;

	if (!call_resume(v, VIRT_CALL_ATTACH, 0, arg))
		return NULL;
	LIST_FOREACH(mm, &v->mms, link)
		if (mm->id == arg[1] && p->peer && mm->record->peer == p->peer)
			return mm;
	return NULL;
}

static struct mm *fork_resume(struct virt *v, const struct mm_params *p)
{
	uint64_t arg[JOURNAL_ARGS];
	struct mm *mm;

	if (!call_resume(v, VIRT_CALL_FORK, p->parent->id, arg))
		return NULL;
	LIST_FOREACH(mm, &v->mms, link)
		if (mm->id == arg[1] && !mm->record->pid &&
		    mm->anon_family == p->parent->anon_family)
			return mm;
	return NULL;
}

int mm_create(struct virt *v, const struct mm_params *p, struct mm **out)
{
	struct mm *mm;
	uint32_t slot;
	bool is_new;
	int r;

	CONTROL_THREAD();
	if (!p->parent && !mm_window_ok(p->window_base, p->window_size))
		return ARENA_E_INVALID;
	*out = p->parent ? fork_resume(v, p) : attach_resume(v, p);
	if (*out)
		return 0;
	mm = mem_alloc(sizeof(*mm));
	if (!mm)
		return ARENA_E_NO_MEMORY;
	mm_init(mm, v, v->state->header->next_mm);
	mm->process_domain = p->process_domain;
	if (p->parent)
		call_prepare(v, VIRT_CALL_FORK, p->parent->id, mm->id, 0, 0, 0);
	else
		call_prepare(v, VIRT_CALL_ATTACH, 0, mm->id, p->peer, 0, 0);
	truth_store(&v->state->header->next_mm, mm->id + 1);
	LIST_INSERT_HEAD(&v->mms, mm, link);
	v->nr_mms++;
	r = files_open(mm);
	if (!r)
		r = header_write(mm, p);
	if (!r)
		r = pgtable_init(mm);
	if (!r)
		r = domain_for(v, p, mm->id, &mm->domain);
	if (!r)
		r = slot_get(mm, mm->domain, false, &slot, &is_new);
	if (!r) {
		slot_use(mm, slot);
		r = p->parent ? mm_copy_memory(p->parent, mm) : 0;
	}
	if (!r)
		r = record_write(mm, p);
	if (!r)
		file_bits_tell(mm);
	if (r) {
		mm_destroy(mm);
		return r;
	}
	*out = mm;
	return 0;
}

/* ---- the end ------------------------------------------------------------------------------------------- */

/* arg: the VMA of the entry before. */
static int drop_one(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg)
{
	const struct vma **vma = arg;

	if (!*vma || addr >= (*vma)->end)
		*vma = vma_find(mm, addr);
	unmap_entry(*vma, ref);
	return 0;
}

/* The client's own counts outlive it in the events. */
static void keep_counts(struct mm *mm)
{
	struct state *s = mm->virt->state;

	state_event(s, EV_ARENA_REFILL, load_relaxed(&mm->channel->refills));
	state_event(s, EV_ARENA_AHEAD_HIT, load_relaxed(&mm->channel->ahead_hits));
	state_event(s, EV_ARENA_EVICTION, load_relaxed(&mm->channel->evictions));
}

struct mm *mm_destroy(struct mm *mm)
{
	const struct vma *vma = NULL;
	struct virt *v;

	if (!mm)
		return NULL;
	CONTROL_THREAD();
	v = mm->virt;
	if (mm->channel)
		keep_counts(mm);
	flush_drop_all(mm);
	settle_forget(mm);
	cow_forget(mm, 0, UINT64_MAX);
	if (mm->tables)
		pgtable_walk(mm, 0, UINT64_C(1) << 47, drop_one, &vma);
	if (mm->base)
		mm_unpin_all(mm);
	vma_free_all(mm);
	files_end_holds(v, mm->id);
	mm_close_handles(mm);
	if (mm->record)
		truth_store(&mm->record->state, 0u);
	if (mm->kept) {
		store_remove_number("mm", mm->id);
		store_remove_number("channel", mm->id);
	}
	slot_free_all(mm);
	pgtable_free_index(mm);
	pin_index_free(mm);
	if (mm->domain)
		drain_pages(v->phys, mm->domain);
	domain_put(mm->domain);
	if (mm->channel)
		os_unmap(mm->channel, ARENA_CHANNEL_SIZE);
	if (mm->base)
		os_unmap(mm->base, ARENA_MM_FILE_SIZE);
	if (mm->file >= 0)
		close(mm->file);
	if (mm->channel_file >= 0)
		close(mm->channel_file);
	LIST_REMOVE(mm, link);
	v->nr_mms -= !mm->condemned;
	free(mm);
	return NULL;
}
