/* SPDX-License-Identifier: MIT */
/*
 * show_pid.c - what /proc/PID says of a client. The pid is the process's own; a process that
 * opened the arena twice has two address spaces, which are shown as one.
 */
#include <sys/mman.h>

#include "base/bitmap.h"
#include "base/util.h"
#include "daemon/files/show.h"

/* Linux starts a mapping's name in column 74. */
#define NAME_COLUMN 73

void put_name(FILE *out, const char *name, bool blanks)
{
	for (const unsigned char *s = (const unsigned char *)name; *s; s++) {
		if (*s < ' ' || *s == 0x7f || *s == '\\' || (blanks && *s == ' '))
			fprintf(out, "\\%03o", *s);
		else
			fputc(*s, out);
	}
}

static struct mm *next_mm(struct show *s, const struct mm *mm)
{
	struct mm *next = mm_next(s->virt, mm);

	while (next && mm_pid(next) != (pid_t)s->number)
		next = mm_next(s->virt, next);
	return next;
}

static struct mm *first_mm(struct show *s)
{
	return mm_find_pid(s->virt, (pid_t)s->number);
}

static void sum_stats(struct show *s, struct mm_stats *sum)
{
	*sum = (struct mm_stats){0};
	for (struct mm *mm = next_mm(s, NULL); mm; mm = next_mm(s, mm)) {
		struct mm_stats stats;

		mm_get_stats(mm, &stats);
		sum->total_vm += stats.total_vm;
		sum->hiwater_vm += stats.hiwater_vm;
		sum->data_vm += stats.data_vm;
		sum->exec_vm += stats.exec_vm;
		sum->stack_vm += stats.stack_vm;
		sum->locked_vm += stats.locked_vm;
		sum->pinned_vm += stats.pinned_vm;
		sum->rss_anon += stats.rss_anon;
		sum->rss_file += stats.rss_file;
		sum->rss_shmem += stats.rss_shmem;
		sum->direct_pages += stats.direct_pages;
		sum->tables += stats.tables;
	}
}

int show_pid_comm(struct show *s)
{
	put_name(s->out, mm_comm(first_mm(s)), false);
	fputc('\n', s->out);
	return 0;
}

/* ---- maps -------------------------------------------------------------------------------- */

static void put_vma(FILE *out, const struct vma_info *vma)
{
	const char *name = vma->name;
	int n;

	/* device 0:1 and the object's number: what Linux shows of shared memory */
	n = fprintf(out, "%08" PRIx64 "-%08" PRIx64 " %c%c%c%c %08" PRIx64 " 00:%02x %" PRIu32 " ",
		    vma->start, vma->end, vma->prot & PROT_READ ? 'r' : '-',
		    vma->prot & PROT_WRITE ? 'w' : '-', vma->prot & PROT_EXEC ? 'x' : '-',
		    vma->shared ? 's' : 'p', vma->pgoff << ARENA_PAGE_SHIFT, vma->object ? 1u : 0u,
		    vma->object);
	if (!name && vma->object)
		name = "/dev/zero (deleted)";
	if (name) {
		fprintf(out, "%*s", MAX(NAME_COLUMN - n, 0), "");
		if (vma->object && vma->name && *name != '/')
			fputc('/', out);
		put_name(out, name, false);
	}
	fputc('\n', out);
}

int show_pid_maps(struct show *s)
{
	for (struct mm *mm = next_mm(s, NULL); mm; mm = next_mm(s, mm)) {
		struct vma_info vma;

		for (uint64_t at = 0; mm_next_vma(mm, at, &vma); at = vma.end)
			put_vma(s->out, &vma);
	}
	return 0;
}

/* ---- status and statm -------------------------------------------------------------------- */

int show_pid_statm(struct show *s)
{
	struct mm_stats sum;

	sum_stats(s, &sum);
	fprintf(s->out, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " 0 %" PRIu64 " 0\n",
		sum.total_vm, sum.rss_anon + sum.rss_file + sum.rss_shmem,
		sum.rss_file + sum.rss_shmem, sum.exec_vm, sum.data_vm + sum.stack_vm);
	return 0;
}

static void put_kb(FILE *out, const char *label, uint64_t pages)
{
	fprintf(out, "%s:\t%8" PRIu64 " kB\n", label, pages_to_kb(pages));
}

static void put_mems_allowed(struct show *s)
{
	uint64_t map[BITMAP_WORDS(NUMA_MAX_NODES)] = {0};
	char text[NUMA_MAX_NODES * 3];

	bitmap_set_range(map, 0, phys_nr_nodes(s->phys));
	bitmap_print_mask(text, sizeof(text), map, NUMA_MAX_NODES);
	fprintf(s->out, "Mems_allowed:\t%s\n", text);
	bitmap_print_list(text, sizeof(text), map, NUMA_MAX_NODES);
	fprintf(s->out, "Mems_allowed_list:\t%s\n", text);
}

/* Lines whose truth only the kernel knows (state, threads, signals) are left to its own file. Pages
 * of arena_alloc_pages() never move: they are what Linux calls pinned. */
int show_pid_status(struct show *s)
{
	struct mm *mm = first_mm(s);
	struct mm_stats sum;
	unsigned uid = mm_uid(mm);

	sum_stats(s, &sum);
	fputs("Name:\t", s->out);
	put_name(s->out, mm_comm(mm), false);
	fprintf(s->out, "\nTgid:\t%" PRIu32 "\nPid:\t%" PRIu32 "\nUid:\t%u\t%u\t%u\t%u\n",
		s->number, s->number, uid, uid, uid, uid);
	put_kb(s->out, "VmPeak", sum.hiwater_vm);
	put_kb(s->out, "VmSize", sum.total_vm);
	put_kb(s->out, "VmLck", sum.locked_vm);
	put_kb(s->out, "VmPin", sum.direct_pages + sum.pinned_vm);
	put_kb(s->out, "VmRSS", sum.rss_anon + sum.rss_file + sum.rss_shmem);
	put_kb(s->out, "RssAnon", sum.rss_anon);
	put_kb(s->out, "RssFile", sum.rss_file);
	put_kb(s->out, "RssShmem", sum.rss_shmem);
	put_kb(s->out, "VmData", sum.data_vm);
	put_kb(s->out, "VmStk", sum.stack_vm);
	put_kb(s->out, "VmExe", sum.exec_vm);
	put_kb(s->out, "VmLib", 0);
	put_kb(s->out, "VmPTE", sum.tables);
	put_kb(s->out, "VmSwap", 0);
	put_kb(s->out, "HugetlbPages", 0);
	put_mems_allowed(s);
	return 0;
}
