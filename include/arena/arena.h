/* SPDX-License-Identifier: MIT */
/*
 * arena.h - the client interface of arenad.
 *
 * Shapes, flags and errors are those of POSIX and Linux: a pointer or MAP_FAILED, an int
 * that is 0 or -1, and errno. What Linux's man page says of a call holds here unless the
 * comment says otherwise. All calls are thread-safe. Memory returned lies in the client's
 * window and is valid until unmapped, or until arena_close().
 */
#ifndef ARENA_ARENA_H
#define ARENA_ARENA_H

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ARENA_VERSION_MAJOR 0
#define ARENA_VERSION_MINOR 1
#define ARENA_VERSION_PATCH 0

typedef struct arena arena_t;

/* How misses of the software TLB reach the library: docs/client.md, "The two traps". */
enum arena_trap {
	ARENA_TRAP_AUTO,       /* userfaultfd where it is permitted, else SIGSEGV */
	ARENA_TRAP_SIGNAL,     /* SIGSEGV: any user, lowest latency, with limits */
	ARENA_TRAP_USERFAULTFD /* userfaultfd(2): system calls and blocked signals fault, too */
};

struct arena_options {
	size_t size;          /* sizeof(struct arena_options), so that the struct may grow */
	const char *socket;   /* path; NULL: $ARENAD_SOCKET, else the default path, see README */
	enum arena_trap trap; /* ARENA_TRAP_AUTO by default */
	size_t window; /* bytes of address space to reserve; 0: 16 TiB, less under RLIMIT_AS */
	/*
	 * Milliseconds that a call or a fault may wait for a daemon that does not answer; 0: 60,000,
	 * UINT_MAX: for ever. After that calls fail with ECONNRESET and new faults are a SIGBUS.
	 */
	unsigned wait_ms;
};

/*
 * Connect to the daemon. `options` may be NULL. On success *out is a handle that the caller
 * ends with arena_close(). -1 and errno: ENOENT or ECONNREFUSED no daemon at that socket,
 * EACCES not permitted, EPROTO the daemon speaks another ABI, ECONNRESET it does not answer,
 * EMFILE it has too many clients (or this process descriptors), EINVAL options, ENOMEM; with
 * ARENA_TRAP_USERFAULTFD: EPERM it is not permitted, ENOTSUP the kernel has none.
 */
int arena_open(const struct arena_options *options, arena_t **out);
/* "signal" or "userfaultfd": what this arena uses, and goes on using. NULL and errno. */
const char *arena_trap_name(arena_t *a);
/* Why userfaultfd was not to be had when this thread last opened, or first used, an arena that could
 * have used it, in one line that says what would permit it; "" if it was. */
const char *arena_trap_reason(void);

/* Unmap everything, give all memory back and free the handle. NULL is allowed. */
void arena_close(arena_t *a);

/*
 * mmap(2) of anonymous memory (MAP_ANONYMOUS; `fd` -1 and `off` 0) or of a regular file, MAP_PRIVATE or
 * MAP_SHARED, and any of MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_POPULATE, MAP_NONBLOCK, MAP_NORESERVE, MAP_STACK, MAP_LOCKED,
 * MAP_GROWSDOWN. Addresses asked for must lie in the window
 * (arena_window()). Errors: EINVAL (length 0, misaligned, both or neither of PRIVATE and SHARED),
 * ENOMEM (no room, too many mappings, RLIMIT_DATA, or more than overcommit_memory allows), EAGAIN
 * and EPERM (MAP_LOCKED or mlockall, and RLIMIT_MEMLOCK), EEXIST (NOREPLACE), EOVERFLOW,
 * EBADF, EACCES and EPERM (what `fd` is open for), ENODEV (no regular file), ENOTSUP (a flag that this
 * version does not serve: MAP_32BIT, MAP_HUGETLB).
 *
 * A file's pages are cached in the arena, once for all clients of a uid. What is written to a shared mapping is
 * in the file after arena_msync(MS_SYNC), arena_munmap() and what else unmaps or replaces it, soon after the process
 * has ended, and else after dirty_expire_centisecs. What others write to the file by write(2) is seen in pages that are not
 * cached: after MS_INVALIDATE, or when nobody maps it any more. The file may be closed, shortened (SIGBUS behind
 * its end) and made longer meanwhile.
 */
void *arena_mmap(arena_t *a, void *addr, size_t len, int prot, int flags, int fd, off_t off);
/* munmap(2): any page range; holes are not an error. EINVAL misaligned, length 0 or outside. */
int arena_munmap(arena_t *a, void *addr, size_t len);
/* mprotect(2). ENOMEM where part of the range is not mapped (what comes before it is
 * changed), EACCES where a read-only segment would become writable. */
int arena_mprotect(arena_t *a, void *addr, size_t len, int prot);
/*
 * mremap(2): grow and shrink in place, MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP, old_len 0 of
 * shared memory makes a second mapping of it. new_addr is used where the flags say so.
 */
void *arena_mremap(arena_t *a, void *old, size_t old_len, size_t new_len, int flags,
		   void *new_addr);
/*
 * madvise(2), all of it but MADV_HWPOISON and its kin. Without reclaim to take them, MADV_FREE keeps
 * the pages, and MADV_COLD and MADV_PAGEOUT are accepted and do nothing; MADV_MERGEABLE is noted.
 * MADV_WILLNEED begins to read a file; MADV_REMOVE of a file is ENOTSUP.
 * MADV_COLLAPSE makes leaves of private anonymous memory (EINVAL for other); EAGAIN: written or
 * pinned meanwhile.
 * ARENA_MADV_GATHER, which Linux has not, moves single pages of private anonymous memory together, so that
 * each 2 MiB needs one kernel mapping, without making a leaf of them; EINVAL for other memory, EAGAIN: written
 * meanwhile, ENOMEM: a hole in the range, EBUSY: no block of 2 MiB is free. The library does it by itself near
 * vm.max_map_count.
 */
#define ARENA_MADV_GATHER 1000
int arena_madvise(arena_t *a, void *addr, size_t len, int advice);
/*
 * A private copy-on-write copy of [addr, addr + len) at a new address, of one moment while other threads, and for
 * shared memory other processes, go on writing: nothing that is written after the call has returned shows in it, all
 * that was written before does. The range may be of any memory but that of arena_alloc_pages() and
 * arena_mmap_pfn(). Costs what the page-table entries cost, and those of all who share it: leaves, not bytes. Pages
 * that shared memory lacks are zeros in the copy; those of a shared file mapping are read first. A page that is
 * pinned is copied at once, as it is then. What a private mapping of a file or segment has not written to is not copied: it
 * stays what is in the file. The copy is unmapped with arena_munmap(). It holds its frames whatever becomes
 * of the segment or file. A process that shares memory with it waits, at its first write to a page of it,
 * until the process that has the copy has flushed.
 * MAP_FAILED and errno: EINVAL (misaligned, length 0, outside the window, pages by number), ENOMEM (part of it is not
 * mapped; no room), EFAULT (a file cannot be read), EBUSY (a process that has the memory mapped, and could
 * write to it, did not react for ten flush_deadline_msecs; stopped, for example. Nothing was copied).
 */
void *arena_snapshot(arena_t *a, const void *addr, size_t len);
/*
 * msync(2): of files MS_SYNC writes what is dirty to their disk, and fails as write(2) and fdatasync(2) do; an
 * error that came when nobody waited is told by the next call for each mapping. What could not be written is
 * tried again. MS_ASYNC begins to write; MS_INVALIDATE drops what is clean.
 * mincore(2): a page is in core if it is present, or its shared memory or file has it.
 */
int arena_msync(arena_t *a, void *addr, size_t len, int flags);
int arena_mincore(arena_t *a, void *addr, size_t len, unsigned char *vec);
/*
 * mlock(2) and its kin: the range is present when they return, and stays so. The limit is the
 * RLIMIT_MEMLOCK of the process, over the memory of one arena_t; CAP_IPC_LOCK lifts it. flags of
 * arena_mlock2: 0 or MLOCK_ONFAULT; of arena_mlockall: MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT.
 */
int arena_mlock(arena_t *a, const void *addr, size_t len);
int arena_mlock2(arena_t *a, const void *addr, size_t len, unsigned flags);
int arena_munlock(arena_t *a, const void *addr, size_t len);
int arena_mlockall(arena_t *a, int flags);
int arena_munlockall(arena_t *a);
/*
 * set_mempolicy(2), for all memory of this arena_t and of what comes from it by fork(): where frames are taken from that
 * are allocated from now on; what there is stays. mode: MPOL_DEFAULT, MPOL_LOCAL, MPOL_PREFERRED (the lowest of
 * the nodes first) or MPOL_BIND (only these) of <linux/mempolicy.h>, without flags. The nodes are arenad's, which may be
 * simulated. EINVAL: another mode, nodes with a mode that takes none, none with MPOL_BIND, or one that is not
 * there. Where the nodes of MPOL_BIND have nothing left memory has run out (SIGBUS, ENOMEM). ARENA_GFP_THISNODE is
 * stronger.
 */
int arena_set_mempolicy(arena_t *a, int mode, const unsigned long *nodes, unsigned long maxnode);
/* brk(2) and sbrk(3) of a heap in the window. It begins where arena_sbrk(a, 0) says at first.
 * ENOMEM: out of the heap's area, RLIMIT_DATA, or as mmap. */
int arena_brk(arena_t *a, void *end);
void *arena_sbrk(arena_t *a, intptr_t delta);
/*
 * get_user_pages: fault the pages in (for writing, breaking copy-on-write) and hold their frames:
 * they do not move, and are not freed before arena_unpin() of the same addresses, even if they are
 * unmapped meanwhile. Pins count; pages pinned twice are unpinned twice. Page aligned. ENOMEM: not
 * mapped, out of memory, or more than RLIMIT_MEMLOCK; EFAULT: the mapping does not permit it;
 * EINVAL from arena_unpin(): not all of it is pinned, and nothing was done.
 */
int arena_pin(arena_t *a, void *addr, size_t len, int write);
int arena_unpin(arena_t *a, void *addr, size_t len);
/* Fault the whole range in now, for reading (write = 0) or writing, as MADV_POPULATE_*.
 * ENOMEM (not mapped, or out of memory), EFAULT (the mapping does not permit it). */
int arena_populate(arena_t *a, void *addr, size_t len, int write);

/*
 * Named shared segments, as shm_open(3): a name "/x" or "x" of 1 to 255 bytes without
 * further slashes, O_RDONLY or O_RDWR with O_CREAT, O_EXCL, O_TRUNC; `mode` less the umask.
 * A segment lives until it is unlinked and the last mapping and handle are gone; unmapped
 * and closed it keeps its contents while the daemon runs. Errors as shm_open(3): NULL and
 * EACCES, EEXIST, ENOENT, EINVAL, ENAMETOOLONG, EMFILE, ENOMEM.
 */
typedef struct arena_shm arena_shm_t;
arena_shm_t *arena_shm_open(arena_t *a, const char *name, int oflag, mode_t mode);
/* ftruncate(2): pages beyond the end are freed, and touching them is a SIGBUS. EINVAL (a
 * negative size, or opened O_RDONLY), EFBIG. */
int arena_shm_truncate(arena_shm_t *s, off_t size);
/*
 * mmap(2) of the segment, MAP_SHARED. With addr NULL every client gets the segment's common
 * address, so pointers stored in it work everywhere; a second mapping of it in one client,
 * or a client whose address space has no room there, gets another address.
 */
void *arena_shm_mmap(arena_shm_t *s, void *addr, size_t len, int prot, int flags, off_t off);
/* Drop the handle; mappings stay. NULL is allowed. */
void arena_shm_close(arena_shm_t *s);
/* Size in bytes, or -1. */
off_t arena_shm_size(arena_shm_t *s);
/* shm_unlink(3): the name goes at once, the memory with its last user. ENOENT, EACCES. */
int arena_shm_unlink(arena_t *a, const char *name);

/* gfp flags: where frames may come from and what may be done to get them. */
enum arena_gfp {
	ARENA_GFP_KERNEL = 0,        /* zone NORMAL and below */
	ARENA_GFP_DMA = 1u << 0,     /* zone DMA only */
	ARENA_GFP_HIGHMEM = 1u << 1, /* zone HIGHMEM preferred */
	ARENA_GFP_MOVABLE = 1u << 3, /* from movable pageblocks */
	ARENA_GFP_RECLAIMABLE = 1u << 4,
	ARENA_GFP_ZERO = 1u << 8,      /* zeroed; frames of another owner always are */
	ARENA_GFP_ATOMIC = 1u << 9,    /* may dip into the reserves, never waits */
	ARENA_GFP_NOWARN = 1u << 13,   /* no failure report in the daemon's log */
	ARENA_GFP_THISNODE = 1u << 21, /* only this CPU's node, whatever the policy */
};
#define ARENA_MAX_ORDER 10

/*
 * 2^order contiguous frames, mapped read-write at page_address(): neighbouring frames lie
 * at neighbouring addresses. NULL and errno: ENOMEM, EINVAL (order above ARENA_MAX_ORDER or
 * unknown flags). Owned by the caller until arena_free_pages() with the same order.
 */
void *arena_alloc_pages(arena_t *a, unsigned gfp, unsigned order);
/*
 * Map frames that this arena_t got by arena_alloc_pages(), from number `pfn` on, once more: at an address of
 * the library's choice, or at `addr` with MAP_FIXED or MAP_FIXED_NOREPLACE. As a driver's mapping by
 * remap_pfn_range(9), VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP: present from the start,
 * arena_mremap() moves or shrinks it and refuses to expand it (EFAULT), mlock passes it over, advice about its
 * pages is EINVAL, arena_pin() EFAULT, and a child of fork(2) does not have it. With ARENA_MAP_MIXED, VM_MIXEDMAP
 * as by vm_insert_page(9): the same, but arena_pin() holds its pages.
 * The frames live until the last such mapping is gone, also when arena_free_pages() comes first.
 * MAP_FAILED and errno: EINVAL (length 0 or above 256 MiB, no such frames, flags, misaligned), EPERM (not all of
 * them are the caller's), EEXIST (NOREPLACE), ENOMEM.
 */
#define ARENA_MAP_MIXED 0x40000000
void *arena_mmap_pfn(arena_t *a, void *addr, uint64_t pfn, size_t len, int prot, int flags);
/* EINVAL: not the start of such an allocation, or another order. */
int arena_free_pages(arena_t *a, void *addr, unsigned order);
/* The frame behind an address, -1 if none is present. Private memory that was only read is no frame but
 * the block of zeros: numbers above the arena's last, the same for all of it. */
int64_t arena_virt_to_pfn(arena_t *a, const void *addr);

/*
 * Any file of the tree, named like "proc/meminfo". Read copies at most `size` bytes from the
 * start, as read(2), and returns how many; where there is room a NUL follows them, and a
 * return of `size` means that there may be more. A directory lists its names, one a line. -1
 * and errno: ENOENT, EACCES. Write sends one value, as `echo value >path`; EINVAL where the
 * file does not take it.
 */
ssize_t arena_attr_read(arena_t *a, const char *path, char *buf, size_t size);
int arena_attr_write(arena_t *a, const char *path, const char *value);

/* Where the window lies in this process. */
void arena_window(arena_t *a, void **base, size_t *size);
/* One round trip that does nothing: what a call costs. 0, or -1 and errno. */
int arena_null(arena_t *a);
/* "0.1.0" */
const char *arena_version(void);

#ifdef __cplusplus
}
#endif

#endif
