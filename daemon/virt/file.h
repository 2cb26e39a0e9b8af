/* SPDX-License-Identifier: MIT */
/*
 * file.h - the cached pages of files: what the files of this room share about them.
 *
 *	file.c        the object of a file, faults, read-ahead, size
 *	file_io.c     the threads that read and write, and what they are given
 *	writeback.c   what is dirty, and how it gets into the file
 *	file_reclaim.c  what goes where memory is short or the file was changed by others
 *
 * A file is one object for each (domain, st_dev, st_ino). The control thread does no I/O: it sets frames
 * aside and hands them over as a file_io, and a call that needs them answers ARENA_E_WAIT_IO and is
 * made again when they are there.
 *
 *	claimed, mapping 0 --- read ---> mapping = object (true from here on), in a chunk
 *	clean --- write fault: PG_DIRTY, then a writable entry ---> dirty
 *	dirty --- PG_WRITEBACK, no entry may write, flushes acknowledged, written ---> clean
 *
 * Invariants: an entry of a shared mapping permits writing only while its frame is PG_DIRTY, and under
 * PG_WRITEBACK only if it is PG_REDIRTY; nr_dirty counts PG_DIRTY frames of the object; each page of a
 * file_io holds one reference; no page is in two reads, or in a read and in a chunk.
 */
#ifndef VIRT_FILE_H
#define VIRT_FILE_H

#include "daemon/sync/workqueue.h"
#include "daemon/virt/internal.h"

#define FILE_IO_PAGES 256u

enum file_io_kind { FILE_READ, FILE_WRITE, FILE_SYNC, FILE_CLOSE };

struct file_io {
	struct work work;
	TAILQ_ENTRY(file_io) held; /* while there are no threads */
	LIST_ENTRY(file_io) in_file;
	struct object *object; /* NULL: FILE_CLOSE */
	const struct file_ops *ops;
	enum file_io_kind kind;
	int fd;
	char *map;   /* of the domain: frame n lies at n << 12 */
	unsigned nr; /* pages; of a read one after the other */
	uint32_t pgoff[FILE_IO_PAGES];
	pfn_t pfn[FILE_IO_PAGES];
	struct io_wait_list waiters; /* of a read */
	/* the worker's answer */
	unsigned done; /* pages that went through */
	int error;     /* -errno of what did not */
};
LIST_HEAD(file_io_list, file_io);

/* Have part of a file written. */
struct file_request {
	TAILQ_ENTRY(file_request) link;
	struct file_request *next_of_wait;
	uint64_t first, last; /* pages, the last included */
	bool sync;            /* and on its disk */
	struct io_wait *wait; /* NULL: nobody, or nobody any more */
	int error;
};
TAILQ_HEAD(file_request_list, file_request);

enum pass_state { PASS_IDLE, PASS_CLEANING, PASS_WRITING, PASS_SYNCING };

/* The write-back of the first request, up to FILE_IO_PAGES at a time. */
struct file_pass {
	enum pass_state state;
	struct flush_wait wait; /* CLEANING: nobody may write any more */
	uint64_t deadline;      /* then it is written all the same, and stays dirty */
	bool late;
	uint64_t next; /* page to go on from */
	struct file_io *io;
};

struct file {
	LIST_ENTRY(file) cleaning; /* of virt's: while the pass is CLEANING */
	uint64_t key[3];           /* domain, device, inode */
	int fd, wfd; /* for reading; for writing, -1: nobody has come with one. May be one */
	bool lost;   /* its descriptor was not in the store */
	uint64_t nr_dirty, dirtied_at;
	struct file_io_list ios;
	struct file_request_list requests;
	struct file_pass pass;
	bool last;          /* nobody maps it: the last request is queued, or done */
	int error;          /* of what nobody waited for; told by the next msync of each VMA */
	uint32_t error_seq; /* changes with each */
};

/* ---- file.c ---- */

struct file_source {
	int *fd;              /* taken over where it is needed */
	uint32_t prot, flags; /* as of mmap(2) */
	bool maywrite;        /* out: mprotect may add PROT_WRITE */
};
/* The object of the file that *fd is open on, made if need be. Errors as mmap(2) has them. Who does not map it
 * calls object_release(). */
int file_open(struct mm *mm, struct file_source *src, struct object **out);
/* A fault of a VMA that maps a file, where the entry does not do. ARENA_E_WAIT_IO. */
int file_fault(struct vma *vma, uint64_t addr, uint32_t access, unsigned cpu,
	       struct fault_refusal *refusal);
/* Look at the file's size, and take away what lies behind its end. */
int file_refresh_size(struct object *o);
void file_read_done(struct file_io *io);
/* Begin to read what is missing of [first, last]. */
void file_readahead(struct object *o, uint64_t first, uint64_t last);
/* All of [first, last) that is in the file is to be cached. 0: it is. ARENA_E_WAIT_IO, ARENA_E_NO_MEMORY,
 * ARENA_E_FAULT: it cannot be read. */
int file_need(struct object *o, uint64_t first, uint64_t last);
/* The object's end; an object of a record. */
void file_end(struct object *o);
int file_adopt(struct virt *v, struct object *o);
/* Recovery: what the store has of it; and its end with no word to truth and store. */
void file_take_descriptors(struct object *o);
void file_forget(struct object *o);
/* Where v has page pgoff mapped from this frame: true, its address and entry. */
bool file_entry(const struct vma *v, uint64_t pgoff, pfn_t pfn, uint64_t *addr,
		struct pte_ref *ref);
/* May an entry of this frame permit writing now? */
bool file_may_write(const struct virt *v, pfn_t pfn);

/* ---- file_io.c ---- */

struct file_io *file_io_new(struct object *o, enum file_io_kind kind, int fd);
void file_io_submit(struct file_io *io);
void file_io_free(struct file_io *io);
void file_close(struct virt *v, int fd); /* in another thread: closing may wait */
void io_wait_end(struct io_wait *w, int error);

/* ---- writeback.c ---- */

/* The frame becomes dirty, and a writable entry of it may follow. */
void file_dirty(struct object *o, pfn_t pfn);
/* It is not the object's any more, or not dirty. */
void file_undirty(struct object *o, struct page *page);
void file_count_dirty(struct object *o, struct page *page); /* recovery */
/* wait NULL: nobody waits. Without memory: an error of *wait. */
void file_request(struct object *o, uint64_t first, uint64_t last, bool sync, struct io_wait *wait);
void file_write_done(struct file_io *io);
/* Nobody maps it. True: it may end. */
bool file_unused(struct object *o);

/* ---- file_reclaim.c ---- */

/* Drop clean pages of [first, last], also mapped ones. True: some were mapped. */
bool file_invalidate(struct object *o, uint64_t first, uint64_t last);
/* Memory is short: take clean pages from who maps them, have dirty ones written. True: flushes will
 * free some. */
bool files_shrink(struct virt *v);
uint64_t files_relieve(void *ctx, struct zone *z, unsigned order);

static inline struct node *file_node(const struct object *o, pfn_t pfn)
{
	return phys_node(o->virt->phys, pfn_zone(o->virt->phys, pfn)->node);
}

static inline uint64_t file_pages(const struct object *o)
{
	return (o->size + ARENA_PAGE_SIZE - 1) >> ARENA_PAGE_SHIFT;
}

#endif
