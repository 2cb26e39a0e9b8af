/* SPDX-License-Identifier: MIT */
/* query.c - what the rooms above may ask of an address space. */
#include "daemon/virt/internal.h"

uint32_t mm_id(const struct mm *mm)
{
	return mm->id;
}

bool mm_is_forked(const struct mm *mm)
{
	return mm->record->state == MM_FORKED;
}

const uint8_t *mm_token(const struct mm *mm)
{
	return mm->header->token;
}

int mm_file(const struct mm *mm)
{
	return mm->file;
}

int mm_channel_file(const struct mm *mm)
{
	return mm->channel_file;
}

void *mm_channel(const struct mm *mm)
{
	return mm->channel;
}

struct domain *mm_domain(const struct mm *mm)
{
	return mm->domain;
}

pid_t mm_pid(const struct mm *mm)
{
	return (pid_t)mm->record->pid;
}

uid_t mm_uid(const struct mm *mm)
{
	return mm->record->uid;
}

gid_t mm_gid(const struct mm *mm)
{
	return mm->record->gid;
}

const char *mm_comm(const struct mm *mm)
{
	return mm->record->comm;
}

uint64_t mm_start_time(const struct mm *mm)
{
	return mm->record->start_time;
}

uint32_t mm_peer(const struct mm *mm)
{
	return mm->record->peer;
}

void mm_set_peer(struct mm *mm, uint32_t peer)
{
	CONTROL_THREAD();
	truth_store(&mm->record->peer, peer);
}

void mm_window(const struct mm *mm, uint64_t *base, uint64_t *size)
{
	*base = mm->condemned ? 0 : mm->header->window_base;
	*size = mm->condemned ? 0 : mm->header->window_size;
}

bool mm_slot(const struct mm *mm, uint32_t slot, int *fd, bool *readonly)
{
	if (slot >= mm->nr_slots || !mm->slots[slot].domain)
		return false;
	*fd = domain_fd(mm->slots[slot].domain);
	*readonly = mm->slots[slot].readonly;
	return true;
}

struct mm *mm_next(struct virt *v, const struct mm *mm)
{
	return mm ? LIST_NEXT(mm, link) : LIST_FIRST(&v->mms);
}

struct mm *mm_next_condemned(struct virt *v, const struct mm *mm)
{
	return mm ? LIST_NEXT(mm, link) : LIST_FIRST(&v->condemned);
}

bool mm_is_condemned(const struct mm *mm)
{
	return mm->condemned;
}

bool mm_record_is_sound(const struct mm *mm)
{
	return mm->record->id == mm->id &&
	       mm->record->checksum == mm_checksum(mm->record, mm->record->state);
}

struct mm *mm_find_pid(struct virt *v, pid_t pid)
{
	struct mm *mm;

	LIST_FOREACH(mm, &v->mms, link) {
		if (mm_pid(mm) == pid)
			return mm;
	}
	return NULL;
}

void mm_get_stats(const struct mm *mm, struct mm_stats *out)
{
	const struct arena_channel_header *c = mm->channel;

	*out = (struct mm_stats){
		.total_vm = mm->total_vm,
		.hiwater_vm = mm->hiwater_vm,
		.data_vm = mm->data_vm,
		.exec_vm = mm->exec_vm,
		.stack_vm = mm->stack_vm,
		.locked_vm = mm->locked_vm,
		.pinned_vm = mm->pinned_vm,
		.start_brk = mm->header->start_brk,
		.brk = mm->header->brk,
		.rss_anon = mm->rss_anon,
		.rss_file = mm->rss_file,
		.rss_shmem = mm->rss_shmem,
		.leaves = mm->leaves,
		.direct_pages = mm->direct_pages,
		.tables = mm->nr_live_tables,
		.limbo = mm->limbo.pages,
		.nr_vmas = mm->nr_vmas,
		.faults = mm->faults,
		.refills = load_relaxed(&c->refills),
		.ahead_hits = load_relaxed(&c->ahead_hits),
		.flushes = load_relaxed(&c->flushes),
		.evictions = load_relaxed(&c->evictions),
		.restarts = load_relaxed(&c->restarts),
		.reconnects = load_relaxed(&c->reconnects),
	};
}

void virt_get_client_counts(const struct virt *v, struct virt_client_counts *out)
{
	const uint64_t *gone = v->state->counters;
	const struct mm *mm;

	*out = (struct virt_client_counts){
		.refills = gone[EV_ARENA_REFILL],
		.ahead_hits = gone[EV_ARENA_AHEAD_HIT],
		.evictions = gone[EV_ARENA_EVICTION],
	};
	LIST_FOREACH(mm, &v->mms, link) {
		out->refills += load_relaxed(&mm->channel->refills);
		out->ahead_hits += load_relaxed(&mm->channel->ahead_hits);
		out->evictions += load_relaxed(&mm->channel->evictions);
	}
}

static const char *vma_name(const struct vma *v)
{
	if (v->flags & VM_DIRECT)
		return "[direct]";
	if (VM_IS_PFN_MAP(v->flags))
		return "[pfn]";
	if (v->object && v->object->kind != OBJECT_ANON)
		return v->object->record->name;
	if (v->start < v->mm->header->brk && v->end > v->mm->header->start_brk)
		return "[heap]";
	return v->flags & VM_GROWSDOWN ? "[stack]" : NULL;
}

bool mm_next_vma(const struct mm *mm, uint64_t from, struct vma_info *out)
{
	const struct vma *v = vma_find(mm, from);

	if (!v)
		return false;
	*out = (struct vma_info){
		.start = v->start,
		.end = v->end,
		.prot = v->prot,
		.shared = v->flags & VM_SHARED || VM_IS_PFN_MAP(v->flags),
		.pgoff = v->object || VM_IS_PFN_MAP(v->flags) ? v->pgoff : 0,
		.object = v->object ? v->object->id : 0,
		.name = vma_name(v),
	};
	return true;
}
