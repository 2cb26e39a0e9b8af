/* SPDX-License-Identifier: MIT */
/*
 * virt.h - virtual memory: address spaces, VMAs, page tables, faults, objects, flushes.
 *
 * The interface for the rooms above. An mm owns its two files (mm:<id>, channel:<id>); the
 * page-table entries and VMA records in the first are truth, the trees here are indexes. Every
 * entry holds one reference and one mapcount of its frame's head. What an entry loses goes to
 * the mm's limbo together with that reference, until the client has acknowledged the flush.
 *
 * All calls run in the control thread and never block. Returns: 0, positive ARENA_E_* for the
 * client, negative -errno.
 */
#ifndef VIRT_VIRT_H
#define VIRT_VIRT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <bsd/sys/queue.h>

#include "arena/abi.h"
#include "base/error.h"
#include "daemon/phys/phys.h"

struct virt;
struct mm;
struct object;

int virt_create(struct phys *p, struct virt **out);
struct virt *virt_destroy(struct virt *v); /* all mms must be gone */
struct phys *virt_phys(struct virt *v);
/*
 * All of it over a phys that is being recovered; calls phys_recover_finish() and domain_end_unused().
 * Each client is told to flush everything. On failure (-errno, ARENA_E_NO_MEMORY) the truth is as
 * good as before.
 */
struct virt_recover_stats {
	unsigned clients, lost_clients; /* taken over; condemned, see mm_next_condemned() */
	unsigned objects, lost_objects;
	uint64_t vmas, entries;
	uint64_t repaired;     /* steps that a crash had left half done */
	uint64_t stray_frames; /* of no object that could have them: freed */
	uint64_t limbo_pages;  /* wait for clients to flush, counted once for each */
	struct phys_recover_stats phys;
};
int virt_recover(struct phys *p, struct virt **out, struct virt_recover_stats *stats);
/* Page tables against mem_map counts, VMA trees against records, objects, limbo. Slow; prints the
 * first disagreement. Also runs phys_is_valid(). */
bool virt_is_valid(struct virt *v);

/* A soft limit of a client's process in bytes, UINT64_MAX: none. With CAP_IPC_LOCK there is no
 * limit of locked memory. */
enum vm_limit { VM_LIMIT_MEMLOCK, VM_LIMIT_STACK, VM_LIMIT_DATA };
typedef uint64_t (*vm_limit_fn)(pid_t pid, enum vm_limit which);
/* Who is asked for them; by default the kernel: a client's own word is worth nothing here. */
void virt_set_limits(struct virt *v, vm_limit_fn fn);
/* Pages promised to all clients, and how many may be where overcommit_memory is 2. */
uint64_t virt_committed_pages(const struct virt *v);
uint64_t virt_commit_limit(const struct virt *v);

/* ---- address spaces ------------------------------------------------------------------------ */

struct credentials {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	unsigned nr_groups;
	const gid_t *groups; /* supplementary; borrowed */
};

struct mm_params {
	uint64_t window_base, window_size;
	const struct credentials *cred;
	const char *comm;
	uint32_t peer;       /* its connection: client-PEER of the store */
	uint64_t start_time; /* of the process, os_process_start() */
	struct mm
		*parent; /* NULL, or what to copy: window and domain are its own, cred->pid is 0 */
	bool process_domain; /* isolation=process: a domain of its own, else its uid's */
};

/* ARENA_E_INVALID (window), ARENA_E_NO_MEMORY, ARENA_E_TOO_MANY. */
int mm_create(struct virt *v, const struct mm_params *params, struct mm **out);
/* A copy for a child of fork(2) is made with params->parent, and becomes somebody's later. */
bool mm_is_forked(const struct mm *mm); /* not yet anybody's */
int mm_adopt(struct mm *mm, const struct credentials *cred, const char *comm, uint32_t peer,
	     uint64_t start_time);
/* The client is gone and has nothing mapped: every frame comes back now. NULL allowed. */
struct mm *mm_destroy(struct mm *mm);

uint32_t mm_id(const struct mm *mm);
const uint8_t *mm_token(const struct mm *mm); /* 16 bytes */
int mm_file(const struct mm *mm);         /* borrowed, read-write: hand out a read-only reopen */
int mm_channel_file(const struct mm *mm); /* borrowed */
void *mm_channel(const struct mm *mm);    /* ARENA_CHANNEL_SIZE bytes, hostile */
struct domain *mm_domain(const struct mm *mm);
pid_t mm_pid(const struct mm *mm);
uid_t mm_uid(const struct mm *mm);
gid_t mm_gid(const struct mm *mm);
const char *mm_comm(const struct mm *mm);
uint64_t mm_start_time(const struct mm *mm); /* with the pid it says which process */
/* Its connection. 0: there is none, and there shall not be another. */
uint32_t mm_peer(const struct mm *mm);
void mm_set_peer(struct mm *mm, uint32_t peer);
void mm_window(const struct mm *mm, uint64_t *base, uint64_t *size);
/* The file (borrowed) that entries with this slot are mapped from. False: the slot is not in use. */
bool mm_slot(const struct mm *mm, uint32_t slot, int *fd, bool *readonly);

struct mm_stats {
	uint64_t total_vm, hiwater_vm;          /* pages of all VMAs; the most there were */
	uint64_t data_vm;                       /* of private writable ones */
	uint64_t exec_vm, stack_vm;             /* executable and not writable; VM_GROWSDOWN */
	uint64_t locked_vm;                     /* of locked ones */
	uint64_t pinned_vm;                     /* pages that arena_pin() holds, once a pin */
	uint64_t start_brk, brk;                /* the heap's ends: addresses */
	uint64_t rss_anon, rss_file, rss_shmem; /* pages present: own, of files, of segments */
	uint64_t leaves;                        /* 2 MiB entries present */
	uint64_t direct_pages;                  /* arena_alloc_pages() */
	uint64_t tables;                        /* page-table pages */
	uint64_t limbo;                         /* pages waiting for an acknowledgement */
	uint64_t nr_vmas;
	uint64_t faults;
	uint64_t refills, ahead_hits, flushes, evictions; /* the client's own counts */
	uint64_t restarts, reconnects;                    /* of workers, and of its connection */
};
void mm_get_stats(const struct mm *mm, struct mm_stats *out);
/* Refills, fill-ahead hits and evictions as all clients ever counted them. */
struct virt_client_counts {
	uint64_t refills, ahead_hits, evictions;
};
void virt_get_client_counts(const struct virt *v, struct virt_client_counts *out);
/* All mms, in no order: mm_next(v, NULL) is the first. */
struct mm *mm_next(struct virt *v, const struct mm *mm);
struct mm *mm_find_pid(struct virt *v, pid_t pid);
/*
 * Those that recovery found damaged: nothing works with them but mm_id(), mm_pid(), mm_uid(),
 * mm_comm() and what else is in the record, and mm_destroy() when their process maps nothing any
 * more. Until then no frame that it may have mapped is used again.
 */
struct mm *mm_next_condemned(struct virt *v, const struct mm *mm);
/* Every entry that maps an anonymous frame, in whatever mm; stops at a non-zero return. For rooms
 * above: struct vma and pte_ref are internal.h's. */
struct vma;
struct pte_ref;
typedef int (*rmap_visitor)(struct vma *vma, uint64_t addr, struct pte_ref *ref, void *arg);
int rmap_walk(struct virt *v, pfn_t pfn, rmap_visitor fn, void *arg);
bool mm_is_condemned(const struct mm *mm);
/* Its record says truly whose it was; else its process cannot be told. */
bool mm_record_is_sound(const struct mm *mm);
uint64_t virt_limbo_pages(const struct virt *v);

/* VMAs in address order, for maps. */
struct vma_info {
	uint64_t start, end;
	uint32_t prot;
	bool shared;
	uint64_t pgoff;
	uint32_t object; /* id: shown as the inode; 0 none */
	const char *
		name; /* segment's name, "[direct]", "[heap]", "[stack]", or NULL; valid until the next call */
};
/* The first VMA that ends above `from`; false at the end. Go on with from = out->end. */
bool mm_next_vma(const struct mm *mm, uint64_t from, struct vma_info *out);

/* ---- calls ------------------------------------------------------------------------------------ */

struct vm_mmap_args {
	uint64_t addr, len;
	uint32_t prot, flags; /* PROT_*, MAP_* as in mmap(2) */
	uint32_t segment;     /* handle of mm_open_segment(), 0: anonymous */
	int *file; /* of the file that this is open on, and taken over if need be; or NULL */
	int64_t offset;
};
int vm_mmap(struct mm *mm, const struct vm_mmap_args *args, uint64_t *out);
int vm_munmap(struct mm *mm, uint64_t addr, uint64_t len);
/* What was written to shared mappings of files there is in the files when *wait is done. Before munmap(2), so
 * that who reads the file after it finds it. */
struct io_wait;
void vm_write_back(struct mm *mm, uint64_t addr, uint64_t len, struct io_wait *wait);
/* The same of all it maps. */
void vm_write_back_all(struct mm *mm, struct io_wait *wait);
/*
 * A client that reads or writes files by system calls, too. A file is named by its device and inode; nothing is done where it
 * is not cached. What is dirty of the range is in the file when *wait is done.
 */
struct vm_file_range {
	uint64_t dev, ino, offset, length;
};
int vm_file_sync(struct mm *mm, const struct vm_file_range *range, struct io_wait *wait);
/*
 * The range of a hold is what the client is about to write, and of the release what it has written; with length UINT64_MAX
 * that is not known. When *wait is done nothing of the file is written until the same thread's release;
 * what it wrote is seen in all mappings when the release's *wait is done. A release without a hold does that, too. ARENA_E_NOT_FOUND: it is
 * not cached, and there is nothing to release.
 */
int vm_file_hold(struct mm *mm, const struct vm_file_range *range, uint32_t thread,
		 struct io_wait *wait);
int vm_file_release(struct mm *mm, const struct vm_file_range *range, uint32_t thread,
		    struct io_wait *wait);
int vm_mprotect(struct mm *mm, uint64_t addr, uint64_t len, uint32_t prot);
/* A private copy of a range at a new address, of this moment. ARENA_E_NOT_MAPPED, ARENA_E_INVALID; of shared
 * memory also ARENA_E_WAIT_IO, ARENA_E_BUSY (who maps it does not acknowledge), ARENA_E_FAULT (its file cannot
 * be read). */
int vm_snapshot(struct mm *mm, uint64_t addr, uint64_t len, uint64_t *out);
/* Flushes of other clients are reported in *wait (may be NULL), see below. ARENA_E_AGAIN of
 * MADV_COLLAPSE: apply the flushes posted, then call again. */
struct flush_wait;
int vm_madvise(struct mm *mm, uint64_t addr, uint64_t len, int advice, struct flush_wait *wait);
/* MS_* of msync(2). With 0 it is done when *wait is, which has its error then. */
int vm_msync(struct mm *mm, uint64_t addr, uint64_t len, uint32_t flags, struct io_wait *wait);
/* A bounded piece of mincore(2): a bit per page, from bit 0 of vec; nr_bits limits it, *next is where to
 * go on. ARENA_E_NOT_MAPPED at a hole, with *next there. */
int vm_mincore(struct mm *mm, uint64_t addr, uint64_t len, uint8_t *vec, uint64_t nr_bits,
	       uint64_t *next);
enum populate_mode {
	POPULATE_READ,
	POPULATE_WRITE,
	POPULATE_LOCK,     /* as mlock(2): for writing where that is private; skips holes */
	POPULATE_LOCK_ALL, /* as mlockall(2): and what refuses is skipped, too */
	/* For pin.c, not for clients: what is private is the mm's own as well. */
	POPULATE_PIN_READ,
	POPULATE_PIN_WRITE,
};
/* Does a bounded piece; *next is where to go on, addr + len when done. ARENA_E_NOT_MAPPED,
 * ARENA_E_ACCESS (the mapping does not permit it), ARENA_E_FAULT (past the end of its object),
 * ARENA_E_AGAIN (apply the flushes posted, then call again). */
int vm_populate(struct mm *mm, uint64_t addr, uint64_t len, enum populate_mode mode, unsigned cpu,
		uint64_t *next);
/* Pin a bounded piece: get_user_pages(). Errors as of vm_populate(). */
int vm_pin(struct mm *mm, uint64_t addr, uint64_t len, bool write, unsigned cpu, uint64_t *next);
/* All or nothing; ARENA_E_INVALID: not all of it is pinned. */
int vm_unpin(struct mm *mm, uint64_t addr, uint64_t len);
struct vm_mremap_args {
	uint64_t old, old_len, new_len;
	uint32_t flags; /* MREMAP_* */
	uint64_t new_addr;
};
int vm_mremap(struct mm *mm, const struct vm_mremap_args *args, uint64_t *out);
/* brk(2): set the end of the heap. end 0: move it by delta, *out is the end before, as sbrk(3). */
int vm_brk(struct mm *mm, uint64_t end, int64_t delta, uint64_t *out);
/* mlock2(2) and its kin. They set flags; the caller populates what mm_wants_populate(). */
int vm_mlock(struct mm *mm, uint64_t addr, uint64_t len, bool onfault);
int vm_munlock(struct mm *mm, uint64_t addr, uint64_t len);
int vm_mlockall(struct mm *mm, uint32_t flags); /* MCL_* */
int vm_munlockall(struct mm *mm);
/* set_mempolicy(2), for the whole mm. MPOL_DEFAULT, LOCAL, PREFERRED, BIND; others INVALID. */
int vm_set_mempolicy(struct mm *mm, uint32_t mode, uint64_t nodes);
/* Is the mapping of addr locked, and to be populated at once? */
bool mm_wants_populate(const struct mm *mm, uint64_t addr);
int vm_alloc_pages(struct mm *mm, unsigned gfp, unsigned order, unsigned cpu, uint64_t *addr,
		   uint64_t *pfn);
int vm_free_pages(struct mm *mm, uint64_t addr, unsigned order);
/* Frames of vm_alloc_pages() from `pfn` on once more, elsewhere (pfnmap.c); of args only addr, len, prot and
 * flags count. ARENA_E_PERMISSION: not all of them are the caller's. */
int vm_mmap_pfn(struct mm *mm, const struct vm_mmap_args *args, uint64_t pfn, uint64_t *out);

struct fault_refusal {
	int signo; /* 0: resolved, look at the entry again */
	int code;  /* SEGV_MAPERR, SEGV_ACCERR, BUS_ADRERR */
};
/* access: PROT_READ, PROT_WRITE or PROT_EXEC. */
int vm_fault(struct mm *mm, uint64_t addr, uint32_t access, unsigned cpu,
	     struct fault_refusal *refusal);

/* The file of zeros, borrowed, to be handed out read-only as ARENA_SLOT_ZERO: from now on entries of this
 * client may have it. -errno. */
int vm_zero_file(struct mm *mm);

/* ---- files ---------------------------------------------------------------------------------- */

/*
 * Files are read and written by other threads. vm_fault(), vm_populate(), vm_pin() and vm_snapshot() answer
 * ARENA_E_WAIT_IO where a page has to be read first, and nothing has happened; so do they, and mm_truncate_segment()
 * and vm_madvise(), where other clients must acknowledge flushes first (frozen.c): virt_io_wait() at once,
 * and when `done` was called the same call again, between virt_io_retry(v, w) and virt_io_retry(v, NULL).
 */
struct io_wait {
	unsigned pending; /* 0 after the operation: nothing to wait for */
	int error;        /* ARENA_E_*, -errno: the first there was */
	void (*done)(struct io_wait *w);
	/* virt's */
	struct file_io *io;
	LIST_ENTRY(io_wait) in_io;
	struct file_request *requests;
	struct frozen_wait *frozen;
	struct settle *settle;
	uint32_t object;
	uint64_t pgoff;
};
LIST_HEAD(io_wait_list, io_wait);
void virt_io_wait(struct virt *v, struct io_wait *w);
void io_wait_cancel(struct io_wait *w);
void virt_io_retry(struct virt *v, const struct io_wait *w);

/* Start the threads. Without them virt_files_collect() does what is to be done. */
int virt_files_start(struct virt *v);
/* Readable (edge-triggered) when something is done; -1: no threads. */
int virt_files_eventfd(const struct virt *v);
/* Take what is done. True: there was something. */
bool virt_files_collect(struct virt *v);
bool virt_files_busy(const struct virt *v);
bool virt_has_files(const struct virt *v); /* some are mapped */
/* What is due: what has been dirty for long is written, sizes are looked at. clock_now(). */
void virt_files_tick(struct virt *v, uint64_t now);
bool virt_has_deadlines(const struct virt *v); /* it is of use to call it */
/* When to call it next; UINT64_MAX: not until there was another call. */
uint64_t virt_files_deadline(const struct virt *v);
/* Write all that is dirty, and wait for it: the daemon is about to leave its clients. */
void virt_files_write_all(struct virt *v);
/* The same, then the threads end. */
void virt_files_stop(struct virt *v);
/* Close a descriptor that a client sent, without waiting for its file system. */
void virt_file_close(struct virt *v, int fd);

/* What is done to files; other than the operating system's in tests. `size` waits for nothing and is the
 * control thread's, the others run in any thread. Lengths or -errno. */
struct file_ops {
	ssize_t (*read)(int fd, void *to, size_t n, uint64_t offset);
	ssize_t (*write)(int fd, const void *from, size_t n, uint64_t offset);
	int (*sync)(int fd);
	int (*size)(int fd, uint64_t *size);
};
void virt_set_file_ops(struct virt *v, const struct file_ops *ops);

/* ---- segments ------------------------------------------------------------------------------- */

struct segment_open {
	const char *name; /* without the leading slash, checked by the caller */
	int oflag;
	uint32_t mode;
	/* out: */
	uint32_t handle; /* in this mm */
	uint32_t slot;
	bool slot_new;      /* the client has no descriptor of this slot yet */
	int slot_fd;        /* borrowed, read-write file of the slot; -1 if not new */
	bool slot_readonly; /* hand out a read-only reopen */
	uint64_t size;
};
int mm_open_segment(struct mm *mm, const struct credentials *cred, struct segment_open *open);
int mm_close_segment(struct mm *mm, uint32_t handle);
/* Flushes of other clients are reported in *wait (may be NULL); see below. */
int mm_truncate_segment(struct mm *mm, uint32_t handle, int64_t size, struct flush_wait *wait);
int mm_stat_segment(struct mm *mm, uint32_t handle, int64_t *size);
/* Needs no mm. EACCES unless the caller owns it, or is root. */
int segment_unlink(struct virt *v, const struct credentials *cred, const char *name);

struct segment_info {
	const char *name;
	uint32_t id, uid, gid, mode, domain;
	uint64_t size, address, pages; /* pages present */
	unsigned nr_handles, nr_vmas;
	bool unlinked;
};
/* In creation order; start with id 0; false at the end. Go on with from = out->id. */
bool segment_next(struct virt *v, uint32_t from, struct segment_info *out);

/* ---- flushes ------------------------------------------------------------------------------------ */

/* The last flush posted to this mm: what a reply to it carries if it changed during the call. */
uint64_t mm_flush_posted(const struct mm *mm);
/* Look at the client's acknowledgements and let go of what they free. Cheap. True: something was. */
bool mm_flush_collect(struct mm *mm);
/* Something of this mm waits for an acknowledgement. */
bool mm_flush_pending(const struct mm *mm);
/* Ask for a doorbell at the next ack (kick) and wake the client's flush thread (wake). */
void mm_flush_want(struct mm *mm, bool wake);
/* Acks of all mms with something pending. */
void virt_flush_collect(struct virt *v);
bool virt_flush_pending(const struct virt *v);

/*
 * Waiting for other clients: an operation that posts flushes to them fills a flush_wait; `done` is called
 * from a later collect (or mm_destroy) when the last of them acknowledged. The owner may give up
 * earlier with flush_wait_cancel().
 */
struct flush_wait {
	unsigned pending; /* 0 after the operation: nobody to wait for */
	void (*done)(struct flush_wait *w);
	struct flush_waiter *first;
};
void flush_wait_cancel(struct flush_wait *w);

#endif
