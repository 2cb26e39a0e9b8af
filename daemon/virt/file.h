/* SPDX-License-Identifier: MIT */
/*
 * file.h - the cached pages of files: what the files of this room share about them.
 *
 *	file.c        the object of a file, faults, read-ahead, size
 *	file_io.c     the threads that read and write, and what they are given
 *	writeback.c   what is dirty, and how it gets into the file
 *	file_reclaim.c  what goes where memory is short or the file was changed by others
 *	file_hold.c   clients that read and write a mapped file by system calls, too
 *	file_bits.c   how clients know which files that concerns
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

enum file_io_kind { FILE_READ, FILE_WRITE, FILE_SYNC, FILE_REFRESH, FILE_CLOSE };

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
	uint64_t from, to;           /* of a refresh: these bytes of the pages, and no others */
	struct io_wait_list waiters; /* of a read */
	bool stale;                  /* of a read: the file was written meanwhile */
	/* the worker's answer */
	unsigned done; /* pages that went through */
	int error;     /* -errno of what did not */
};
LIST_HEAD(file_io_list, file_io);

/*
 * Have part of a file written; or (`hold`) have nothing of it written while a client writes the file by system
 * calls, and then have what he wrote read.
 */
struct file_request {
	TAILQ_ENTRY(file_request) link;
	struct file_request *next_of_wait;
	uint64_t first, last; /* pages, the last included */
	bool sync;            /* and on its disk */
	struct io_wait *wait; /* NULL: nobody, or nobody any more */
	int error;
	/* of a hold */
	bool hold, granted, released;
	bool cut;            /* those who map it may not have let go of its end */
	bool unknown;        /* what was written */
	uint32_t mm, thread; /* whose; 0: nobody's any more */
	uint64_t from, to;   /* bytes that were written, or are going to be */
};
TAILQ_HEAD(file_request_list, file_request);

enum pass_state {
	PASS_IDLE,
	/* of a request */
	PASS_CLEANING,
	PASS_WRITING,
	PASS_SYNCING,
	/* of a hold: nothing of the file is being written */
	PASS_HELD,
	PASS_SETTLING,   /* released; who maps what was cut off lets go of it */
	PASS_REFRESHING, /* what was written is read */
};

/* The work of the first request, up to FILE_IO_PAGES at a time. */
struct file_pass {
	enum pass_state state;
	struct flush_wait wait; /* CLEANING: nobody may write any more; SETTLING */
	uint64_t deadline;      /* of CLEANING, HELD, SETTLING: then it goes on all the same */
	bool late;
	uint64_t next; /* page to go on from */
	struct file_io *io;
};

struct file {
	struct object *object;
	LIST_ENTRY(file) waiting;  /* of virt's: while the pass has a deadline */
	LIST_ENTRY(file) same_bit; /* of virt's: with the same arena_file_bit() */
	unsigned bit;
	bool told_dirty; /* clients have been told that it has dirty pages, or may */
	uint64_t key[3]; /* domain, device, inode */
	int fd, wfd;     /* for reading; for writing, -1: nobody has come with one. May be one */
	bool lost;       /* its descriptor was not in the store */
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
/* Look at the file's size, and take away what lies behind its end; *wait (or NULL): until all have let go. */
int file_refresh_size(struct object *o, struct flush_wait *wait);
struct object *file_find(struct virt *v, const uint64_t key[3]); /* domain, device, inode; NULL */
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
/* For file_hold.c: go on with the requests; a request is over; who waits for it is told; a deadline begins and
 * ends. */
void file_pass_step(struct object *o);
void file_request_done(struct object *o, struct file_request *r);
void file_request_answer(struct file_request *r);
void file_pass_wait(struct object *o, enum pass_state state, uint64_t msecs);
void file_pass_go_on(struct object *o);
/* Pages of [from, last] with all of these flags, as many as it takes. */
void file_gather(struct object *o, struct file_io *io, uint64_t from, uint64_t last,
		 uint32_t flags);

/* ---- file_hold.c ---- */

/* A hold is the first request. */
void file_hold_step(struct object *o, struct file_request *r);
/* Its deadline has passed. */
void file_hold_late(struct object *o);
void file_refresh_done(struct file_io *io);
/* Recovery: its record says that somebody holds it. */
void file_hold_recover(struct object *o);
/* The client is gone. */
void files_end_holds(struct virt *v, uint32_t mm_id);

/* ---- file_bits.c ---- */

void file_bits_enter(struct file *f);
void file_bits_leave(struct file *f);
/* It has dirty pages; and from time to time, whether it still has. */
void file_bits_dirty(struct file *f);
void file_bits_look(struct file *f);
/* All of them for a new address space. */
void file_bits_tell(struct mm *mm);

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
