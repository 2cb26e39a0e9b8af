/* SPDX-License-Identifier: MIT */
/*
 * account.c - what address spaces add up to, and what they may: the statistics of an mm
 * (total_vm, data_vm, ...), Committed_AS and overcommit, RLIMIT_DATA, max_map_count.
 *
 * All of it is an index over VMAs and objects: vma_count() is called where a VMA comes, goes, or
 * changes flags, so the sums always are those of the tree. The direct map counts for nothing.
 *
 * Promises, as Linux makes them: a private writable mapping is accounted (VM_ACCOUNT) unless it says
 * MAP_NORESERVE and overcommit_memory is not 2; shared anonymous memory is accounted by its
 * object; a named segment is not: like a file of a tmpfs it is counted as it fills.
 */
#include <linux/capability.h>
#include <sys/resource.h>

#include "daemon/virt/internal.h"

#define OVERCOMMIT_GUESS 0
#define OVERCOMMIT_ALWAYS 1
#define OVERCOMMIT_NEVER 2

/* ---- limits of processes --------------------------------------------------------------------- */

/* What Linux gives a process that nobody has changed. A limit that cannot be read is that of a process
 * which is about to be no more. */
#define LIMIT_DEFAULT (UINT64_C(8) << 20)

uint64_t limit_of_process(pid_t pid, enum vm_limit which)
{
	static const int resource[] = {
		[VM_LIMIT_MEMLOCK] = RLIMIT_MEMLOCK,
		[VM_LIMIT_STACK] = RLIMIT_STACK,
		[VM_LIMIT_DATA] = RLIMIT_DATA,
	};
	uint64_t limit;

	if (os_process_limit(pid, resource[which], &limit))
		limit = which == VM_LIMIT_DATA ? UINT64_MAX : LIMIT_DEFAULT;
	/* Reading a file, so only where it matters. */
	if (which == VM_LIMIT_MEMLOCK && limit != UINT64_MAX &&
	    os_process_capable(pid, CAP_IPC_LOCK))
		limit = UINT64_MAX;
	return limit;
}

void virt_set_limits(struct virt *v, vm_limit_fn fn)
{
	v->limit = fn;
}

/* ---- statistics -------------------------------------------------------------------------------- */

static bool is_data(uint32_t flags, uint32_t prot)
{
	return (prot & PROT_WRITE) && !(flags & (VM_SHARED | VM_GROWSDOWN | VM_SPECIAL));
}

static bool is_exec(uint32_t flags, uint32_t prot)
{
	return (prot & (PROT_EXEC | PROT_WRITE)) == PROT_EXEC && !(flags & VM_GROWSDOWN);
}

void vma_count(const struct vma *v, int sign)
{
	uint64_t n = (v->end - v->start) >> ARENA_PAGE_SHIFT;
	struct mm *mm = v->mm;

	if (v->flags & VM_DIRECT)
		return;
	n = sign < 0 ? -n : n;
	mm->total_vm += n;
	mm->hiwater_vm = MAX(mm->hiwater_vm, mm->total_vm);
	if (is_exec(v->flags, v->prot))
		mm->exec_vm += n;
	else if (v->flags & VM_GROWSDOWN)
		mm->stack_vm += n;
	else if (is_data(v->flags, v->prot))
		mm->data_vm += n;
	if (v->flags & VM_LOCKED)
		mm->locked_vm += n;
	if (v->flags & VM_ACCOUNT)
		mm->virt->committed += n;
}

void mm_range_usage(const struct mm *mm, uint64_t start, uint64_t end, struct vm_usage *out)
{
	struct vma *v;

	*out = (struct vm_usage){0};
	for (v = vma_find(mm, start); v && v->start < end; v = vma_next(v)) {
		uint64_t n = (MIN(v->end, end) - MAX(v->start, start)) >> ARENA_PAGE_SHIFT;

		if (v->flags & VM_DIRECT)
			continue;
		out->pages += n;
		out->data += is_data(v->flags, v->prot) ? n : 0;
		out->accounted += v->flags & VM_ACCOUNT ? n : 0;
		out->locked += v->flags & VM_LOCKED ? n : 0;
	}
}

int mm_may_expand(const struct mm *mm, uint32_t flags, uint32_t prot, uint64_t pages)
{
	if (!is_data(flags, prot) || !pages)
		return 0;
	return mm->data_vm + pages > mm_limit(mm, VM_LIMIT_DATA) >> ARENA_PAGE_SHIFT
		       ? ARENA_E_NO_MEMORY
		       : 0;
}

bool map_count_ok(const struct mm *mm, unsigned more)
{
	return mm->nr_vmas + more <= state_tunable(mm->virt->state, TUNABLE_MAX_MAP_COUNT);
}

int vma_isolate_counted(struct mm *mm, uint64_t start, uint64_t end)
{
	const struct vma *first = vma_find(mm, start), *last = vma_find(mm, end - 1);
	unsigned cuts = 0;

	if (first && first->start < start)
		cuts++;
	if (last && last->start < end && last->end > end)
		cuts++;
	if (cuts && !map_count_ok(mm, cuts))
		return ARENA_E_NO_MEMORY;
	return vma_isolate(mm, start, end);
}

/* ---- overcommit ---------------------------------------------------------------------------------- */

uint64_t virt_committed_pages(const struct virt *v)
{
	return v->committed;
}

uint64_t virt_commit_limit(const struct virt *v)
{
	uint64_t kbytes = state_tunable(v->state, TUNABLE_OVERCOMMIT_KBYTES);

	if (kbytes)
		return kbytes >> (ARENA_PAGE_SHIFT - 10);
	return phys_total_pages(v->phys) * state_tunable(v->state, TUNABLE_OVERCOMMIT_RATIO) / 100;
}

int vm_enough_memory(const struct mm *mm, uint64_t pages)
{
	const struct virt *v = mm->virt;
	uint64_t allowed, reserve;

	switch (state_tunable(v->state, TUNABLE_OVERCOMMIT_MEMORY)) {
	case OVERCOMMIT_ALWAYS:
		return 0;
	case OVERCOMMIT_GUESS:
		/* Only what is plainly too much. */
		return pages > phys_total_pages(v->phys) ? ARENA_E_NO_MEMORY : 0;
	default:
		break;
	}
	allowed = virt_commit_limit(v);
	/* Room for root to log in and end something; and for that something to be ended. */
	reserve = mm->record->uid ? state_tunable(v->state, TUNABLE_ADMIN_RESERVE_KBYTES) >>
					    (ARENA_PAGE_SHIFT - 10)
				  : 0;
	reserve += MIN(mm->total_vm / 32, state_tunable(v->state, TUNABLE_USER_RESERVE_KBYTES) >>
						  (ARENA_PAGE_SHIFT - 10));
	return v->committed + pages + reserve >= allowed ? ARENA_E_NO_MEMORY : 0;
}

uint32_t vm_account_flags(const struct virt *v, uint32_t flags, uint32_t prot)
{
	if (state_tunable(v->state, TUNABLE_OVERCOMMIT_MEMORY) == OVERCOMMIT_NEVER)
		flags &= ~VM_NORESERVE;
	if (!(flags & (VM_SHARED | VM_NORESERVE)) && (prot & PROT_WRITE))
		flags |= VM_ACCOUNT;
	return flags;
}
