/* SPDX-License-Identifier: MIT */
/*
 * internal.h - the structures of the virt room.
 *
 *   struct virt ---- mms (list) ---- struct mm ---- vmas (red-black tree by address)
 *        |                             |   |              |
 *        |                             |   +- page tables |   (mm file: truth)
 *        |                             +- limbo, slots    |
 *        +---- objects (hash by id, by name) <------------+
 *                   +- chunks (hash by 2 MiB index) -> frames
 */
#ifndef VIRT_INTERNAL_H
#define VIRT_INTERNAL_H

#include <sys/mman.h>
#include <bsd/sys/queue.h>
#include <bsd/sys/tree.h>

/* No allocation of an index may end the daemon: uthash reports instead of exiting. */
#define HASH_NONFATAL_OOM 1
#define uthash_nonfatal_oom(elt) ((elt)->hash_failed = true)
#define uthash_malloc(size) mem_alloc(size)
#define uthash_free(p, size) free(p)
#include <uthash.h>

#include "arena/arena.h"
#include "base/faultpoint.h"
#include "base/mem.h"
#include "base/os.h"
#include "base/truth.h"
#include "base/util.h"
#include "daemon/sync/lock.h"
#include "daemon/virt/virt.h"

/* ---- VMAs ------------------------------------------------------------------------------------ */

#define VM_SHARED (1u << 0)
#define VM_MAYWRITE (1u << 1) /* mprotect may add PROT_WRITE */
#define VM_HUGEPAGE (1u << 2)
#define VM_NOHUGEPAGE (1u << 3)
#define VM_DIRECT (1u << 4) /* the direct map of arena_alloc_pages() */
#define VM_SEQ_READ (1u << 5)
#define VM_RAND_READ (1u << 6)
#define VM_NORESERVE (1u << 7)
#define VM_GROWSDOWN (1u << 8)
#define VM_LOCKED (1u << 9)
#define VM_LOCKONFAULT (1u << 10)
#define VM_ACCOUNT (1u << 11) /* its pages are in virt.committed */
#define VM_DONTCOPY (1u << 12)
#define VM_WIPEONFORK (1u << 13)
#define VM_DONTDUMP (1u << 14)
#define VM_MERGEABLE (1u << 15)
#define VM_PFNMAP (1u << 16) /* frames by number: no struct page of them is looked at */
#define VM_IO (1u << 17)
#define VM_MIXEDMAP (1u << 18)
#define VM_SNAPSHOT (1u << 19) /* private, with frames of the object `origin` as they once were */
#define VM_SETTLING (1u << 20) /* a snapshot that was told to nobody yet */
#define VM_LOCKED_MASK (VM_LOCKED | VM_LOCKONFAULT)
#define VM_SPECIAL (VM_DIRECT | VM_PFNMAP | VM_IO | VM_MIXEDMAP)

/* A mapping of pfnmap.c, not the direct map? */
#define VM_IS_PFN_MAP(flags) (!((flags)&VM_DIRECT) && ((flags)&VM_SPECIAL))

struct vma {
	RB_ENTRY(vma) node;
	LIST_ENTRY(vma) in_object;
	struct mm *mm;
	uint64_t start, end;
	uint32_t flags, prot;
	uint64_t pgoff;
	struct object *object; /* NULL: private anonymous */
	struct object *origin; /* VM_SNAPSHOT: whose frames it may have; `object` is NULL */
	uint32_t slot;         /* arena descriptor its frames are mapped from */
	uint32_t record;       /* index of its record in the mm file */
	uint64_t ahead_next;   /* a fault here continues a sequential pattern */
	uint32_t ahead_window; /* leaves (or pages) the last such fault installed */
	pfn_t ahead_pfn;       /* the frame that would continue them */
	uint32_t error_seq;    /* of a file: the last error that was told here */
};
RB_HEAD(vma_tree, vma);
LIST_HEAD(vma_list, vma);

/* ---- page tables --------------------------------------------------------------------------------- */

#define TABLE_NONE UINT32_MAX
struct table_info {
	uint32_t parent;
	uint16_t index; /* in the parent */
	uint16_t used;  /* entries that are not zero */
	uint8_t level;  /* 3: root */
};

/* Where an entry is. */
struct pte_ref {
	uint64_t *entry;
	uint32_t table;
	unsigned level;
	unsigned index;
};

/* ---- limbo ---------------------------------------------------------------------------------------- */

enum limbo_kind { LIMBO_FRAME, LIMBO_TABLE };
struct limbo_item {
	uint64_t seq;    /* may go when this flush is acknowledged */
	uint32_t number; /* pfn of a head, or table */
	uint16_t kind;
	uint16_t pages; /* that the entry mapped; 0 of a table */
};
struct limbo {
	struct limbo_item *ring;
	uint32_t capacity; /* power of two, or 0 */
	uint32_t head, count;
	uint64_t pages; /* sum over the items */
};

struct flush_waiter {
	struct flush_waiter *next; /* of the same wait */
	TAILQ_ENTRY(flush_waiter) in_mm;
	struct flush_wait *wait;
	struct mm *mm;
	uint64_t seq;
};
TAILQ_HEAD(flush_waiter_list, flush_waiter);

/* ---- slots ------------------------------------------------------------------------------------------ */

/* Truth: struct arena_slot_record of the same number. */
struct slot {
	struct domain *domain; /* NULL: free; a reference is held */
	bool readonly;
	uint32_t users; /* handles and VMAs */
	/* Without users it ends with this flush, because until then the client may have its frames mapped;
	 * 0: it has users, or is slot 0. */
	uint64_t linger;
};

/* Truth: struct arena_handle_record. */
struct handle {
	struct object *object; /* NULL: free */
	uint32_t slot;
	bool writable;
};

/* ---- mm ------------------------------------------------------------------------------------------------ */

struct cow_job;
TAILQ_HEAD(cow_job_list, cow_job);

struct mm {
	struct virt *virt;
	LIST_ENTRY(mm) link;
	struct mm_record *record;
	uint32_t id;
	uint32_t anon_family; /* as in the header */
	int file, channel_file;
	uint8_t *base; /* the mm file */
	struct arena_mm_header *header;
	struct arena_vma_record *records;
	struct arena_handle_record *handle_records;
	struct arena_slot_record *slot_records;
	struct arena_channel_header *channel;
	struct arena_flush_entry *flush_ring;
	struct domain *domain;

	struct vma_tree vmas;
	uint32_t nr_vmas;
	uint32_t *free_records; /* stack of record slots below record_top that are free */
	uint32_t nr_free_records, cap_free_records, record_top;
	uint64_t search_from, cached_hole; /* get_unmapped_area */

	struct table_info *tables;
	uint32_t cap_tables, nr_live_tables;
	uint32_t *free_tables;
	uint32_t nr_free_tables, cap_free_tables;

	struct limbo limbo;
	uint64_t posted, acked;
	uint64_t wp_seq; /* the last flush that took a right to write because a frame was shared */
	uint64_t push_seq; /* the last one that took an object's frame from a snapshot */
	bool late; /* that one is not waited for any more, until the client acknowledges something */
	unsigned nr_settling; /* snapshots of its memory under way */
	struct cow_job_list cow_jobs;
	unsigned nr_cow_jobs;
	uint64_t recovered; /* the whole flush that recovery posted */
	uint64_t partial;   /* recovery: a block of the direct map that lacks entries, until ... */
	unsigned partial_order; /* ... it is taken away; its order + 1, or 0 */
	bool kicked;            /* flush_kick is set */
	struct flush_waiter_list waiters;
	bool process_domain;
	bool kept;      /* its files may be in the store */
	bool condemned; /* recovery could not have it: nothing but record, domain and limbo */
	bool dying;     /* the client maps nothing any more: nothing waits in limbo */

	struct slot *slots;
	uint32_t nr_slots, nr_lingering;
	struct handle *handles;
	uint32_t nr_handles;

	uint64_t rss_anon, rss_file, rss_shmem, leaves, direct_pages, faults;
	uint64_t total_vm, hiwater_vm, data_vm, exec_vm, stack_vm, locked_vm; /* account.c */
	uint64_t pinned_vm;                                                   /* pin.c */
	struct pin_index *pins;   /* pin_index.c; NULL: nothing was ever pinned */
	uint32_t reserved_tables; /* table_alloc() will not fail so often */
};
LIST_HEAD(mm_list, mm);

/* ---- objects ------------------------------------------------------------------------------------------- */

enum object_kind { OBJECT_FREE, OBJECT_SEGMENT, OBJECT_ANON, OBJECT_FILE };

/* 2 MiB of an object: one leaf, or single frames. */
struct chunk {
	uint64_t index;
	pfn_t leaf;   /* PFN_NONE: single frames */
	pfn_t *pages; /* [512], PFN_NONE where absent; NULL with a leaf */
	uint32_t nr;  /* present among pages */
	bool hash_failed;
	UT_hash_handle hh;
};

struct object {
	struct virt *virt;
	struct object_record *record;
	uint32_t id;
	enum object_kind kind;
	bool readonly_slots; /* in a domain of its own: a read-only open gets a read-only file */
	struct domain *domain;
	uint64_t size; /* bytes */
	uint64_t nr_pages;
	uint64_t accounted; /* pages of it in virt.committed */
	unsigned nr_handles, nr_vmas, nr_snapshots;
	unsigned nr_settling; /* snapshots of its pages under way ... */
	unsigned nr_settles;  /* ... and those that have not been told yet */
	struct vma_list vmas, snapshots;
	struct chunk *chunks;
	struct chunk *last; /* found last */
	bool hash_failed;
	UT_hash_handle by_name; /* of a file: by its key */
	LIST_ENTRY(object) link;
	struct file *file; /* OBJECT_FILE: file.h */
};
LIST_HEAD(object_list, object);

/* A uid's domain outlives its last client, so that the next one finds its zeroed pool. Its blocks are
 * free memory all the while: another domain that needs them takes them. */
#define VIRT_KEPT_DOMAINS 8

/* See file.h. */
#define FILE_QUEUES 8u
struct file_io;
struct workqueue;
TAILQ_HEAD(held_list, file_io);
LIST_HEAD(file_list, file);
struct files {
	const struct file_ops *ops;
	bool threads;
	int eventfd; /* of all queues */
	struct workqueue *queue[FILE_QUEUES];
	struct held_list held;    /* without threads */
	struct file_list waiting; /* those whose pass has a deadline */
	struct file_list by_bit[ARENA_FILE_BITS];
	unsigned nr_ios, nr_files, nr_holds;
	struct object *by_key;
	struct file_io *wanted;      /* what the call that answers ARENA_E_WAIT_IO waits for ... */
	uint64_t wanted_page;        /* ... and the page it needs of it */
	const struct io_wait *retry; /* the call being served waited for this, and it failed */
	uint64_t next_interval;      /* clock_now() */
};

/* See frozen.h. */
struct settle;
struct frozen_wait;
LIST_HEAD(settle_list, settle);
LIST_HEAD(frozen_wait_list, frozen_wait);
struct frozen {
	struct settle_list settling;
	struct frozen_wait_list waits;
	unsigned nr_snapshots; /* VMAs */
	bool recovering;       /* not all page tables are to be relied on */
	/* what the call that answers ARENA_E_WAIT_IO waits for, one of */
	struct settle *wanted_settle;
	struct object *wanted_object;
	const struct io_wait *retry; /* the call being served waited for this */
};

struct virt {
	struct phys *phys;
	struct state *state;
	struct mm_list mms, condemned;
	uint32_t nr_mms;
	struct object_list objects;
	struct object *names;
	uint32_t object_cursor;                 /* next record slot to try */
	struct domain *kept[VIRT_KEPT_DOMAINS]; /* references: uids' domains used last */
	unsigned next_kept;
	uint64_t limbo_pages;
	uint32_t nr_pending; /* mms with something in limbo or waiters */
	uint64_t committed;  /* pages of VM_ACCOUNT VMAs and of accounted objects: Committed_AS */
	vm_limit_fn limit;
	int zero_file;    /* zero.c; -1: nobody asked for it yet */
	bool zero_backed; /* its block has its memory */
	pfn_t zero_pfn;   /* the block's number, behind the arena's last frame; PFN_NONE: none */
	struct files files;
	struct frozen frozen;
};

/* ---- mm.c ---- */

void mm_init(struct mm *mm, struct virt *v, uint32_t id); /* empty */
int mm_map_files(struct mm *mm);                          /* file and channel_file are there */
bool mm_window_ok(uint64_t base, uint64_t size);
uint32_t mm_checksum(const struct mm_record *r, enum mm_state state);
void domain_keep(struct virt *v, struct domain *d);
/* Free every index but the struct, with no word to the truth. */
void mm_forget(struct mm *mm);
/* FNV-1a, to notice a flipped bit; start with sum 0. */
uint32_t checksum_add(uint32_t sum, const void *bytes, size_t n);

/* ---- pgtable.c ---- */

int pgtable_init(struct mm *mm);
void pgtable_free_index(struct mm *mm);
int pgtable_reserve_index(struct mm *mm, uint32_t table); /* room to note tables up to this one */
uint64_t *pgtable_entries(const struct mm *mm, uint32_t table);
static inline uint64_t pgtable_table_entry(uint32_t table)
{
	return ARENA_PTE_PRESENT | (uint64_t)table << ARENA_PTE_PFN_SHIFT;
}
/* The entry that maps addr: a leaf (level 1) or level 0. False: a table on the way is missing; *ref
 * then says at which level. */
bool pgtable_lookup(const struct mm *mm, uint64_t addr, struct pte_ref *ref);
/* The entry of addr at `level` (0 or 1), tables made as needed. At level 0 a leaf must not be in the way
 * (BUG_ON). At level 1 the entry may be a table. ARENA_E_NO_MEMORY. */
int pgtable_get(struct mm *mm, uint64_t addr, unsigned level, struct pte_ref *ref);
/* From an entry to the one that points to its table. */
void pgtable_parent(const struct mm *mm, struct pte_ref *ref);
/* Store an entry where none was, replace one, take one away. Taking the last entry of a table
 * takes the table out too (to limbo). */
void pte_install(struct mm *mm, const struct pte_ref *ref, uint64_t value);
void pte_switch(struct mm *mm, const struct pte_ref *ref, uint64_t value);
void pte_clear(struct mm *mm, const struct pte_ref *ref);
/* The next n tables that are needed will be there. ARENA_E_NO_MEMORY. */
int pgtable_reserve(struct mm *mm, uint32_t n);
void pgtable_unreserve(struct mm *mm);
void pgtable_release(struct mm *mm, uint32_t table); /* out of limbo: free for use */
/* Replace a leaf by a table of 512 entries of the same frames. ARENA_E_NO_MEMORY. */
int pgtable_split_leaf(struct mm *mm, struct pte_ref *ref, uint64_t addr);

/*
 * Calls fn for every present entry that maps something of [start, end), in order; fn may clear or
 * switch it. addr is the first address the entry maps. Stops at a non-zero return.
 */
typedef int (*pte_visitor)(struct mm *mm, uint64_t addr, struct pte_ref *ref, void *arg);
int pgtable_walk(struct mm *mm, uint64_t start, uint64_t end, pte_visitor fn, void *arg);

/* ---- vma.c ---- */

RB_PROTOTYPE(vma_tree, vma, node, vma_compare)
struct vma_template {
	uint64_t start, end, pgoff;
	uint32_t flags, prot, slot;
	struct object *object, *origin;
};
struct vma *vma_find(const struct mm *mm, uint64_t addr); /* first with end > addr */
struct vma *vma_next(struct vma *v);
struct vma *vma_prev(struct vma *v);
/* A new VMA, merged with its neighbours where they are alike. */
int vma_insert(struct mm *mm, const struct vma_template *t);
/* Cut v at addr (inside it); v keeps the lower part. */
int vma_split(struct vma *v, uint64_t addr);
void vma_set_access(struct vma *v, uint32_t flags, uint32_t prot);
/* Join v with its neighbours where they are alike; returns the VMA that holds v's range. */
struct vma *vma_merge(struct vma *v);
/* Begin at `start`, below where it begins; nothing is there. */
int vma_grow_down(struct vma *v, uint64_t start);
void vma_remove(struct vma *v); /* its entries are gone already */
/* Cut so that [start, end) begins and ends at VMA borders. */
int vma_isolate(struct mm *mm, uint64_t start, uint64_t end);
void vma_free_all(struct mm *mm);
/* Recovery: index the VMA of a live record that was checked, whose object is o. ARENA_E_EXISTS: one
 * begins there. Then note the free records below `top`. */
int vma_adopt(struct mm *mm, uint32_t record, struct object *o);
int vma_adopt_free_records(struct mm *mm, uint32_t top);
void vma_forget(struct vma *v);

/* ---- area.c ---- */

int area_find(struct mm *mm, uint64_t len, uint64_t hint, uint64_t *out);
void area_freed(struct mm *mm, uint64_t start, uint64_t end);
bool area_is_free(const struct mm *mm, uint64_t start, uint64_t end);

/* ---- rmap.c: what an entry does to its frame's counts ---- */

pfn_t frame_head(const struct virt *v, pfn_t pfn);
/* Entry value for a frame in a VMA. A private mapping of an object's frame never permits writing. */
uint64_t vma_entry(const struct vma *vma, pfn_t pfn, bool leaf, bool hole, bool ahead,
		   bool of_object);
/* Count an entry of vma in (sign 1) or out (-1) of the statistics of its mm and node. */
void entry_count(const struct vma *vma, const struct page *page, pfn_t pfn, uint64_t entry,
		 int sign);
/* What a present entry at addr should be by its VMA's rights now; a shared private frame stays
 * read-only. */
uint64_t entry_refresh(const struct vma *vma, uint64_t addr, const struct pte_ref *ref);
/* Install an entry that takes over a reference of the frame's head. */
void map_frame(struct vma *vma, const struct pte_ref *ref, pfn_t pfn, uint64_t entry);
/* Take the entry away: its reference goes to limbo (or is dropped at once if the mm is dying). The
 * caller posts the flush. */
void unmap_entry(const struct vma *vma, struct pte_ref *ref);
/* Replace an entry by one of another frame, whose reference it takes over, in one store; the old
 * frame's goes to limbo. The caller reserved room there and posts the flush. */
void remap_entry(const struct vma *vma, struct pte_ref *ref, pfn_t pfn, uint64_t entry);
/*
 * A leaf in place of a table of entries: those are marked as in limbo, then the leaf is stored, then
 * each of them is dropped. Room in limbo was reserved; the caller posts the flush.
 */
void entry_mark_limbo(struct mm *mm, uint64_t entry);
void map_frame_over(struct vma *vma, const struct pte_ref *ref, pfn_t pfn, uint64_t entry);
void drop_replaced_entry(const struct vma *vma, uint64_t entry);
/* Split the leaf that addr cuts, if one does. */
int split_leaf_at(struct mm *mm, uint64_t addr);
/* Take away everything in the range, splitting leaves at its ends. *any: entries were there. */
int zap_range(struct mm *mm, uint64_t start, uint64_t end, bool *any);

/* ---- zero.c ---- */

void zero_init(struct virt *v);
void zero_exit(struct virt *v, bool unkeep);
void zero_recover(struct virt *v); /* the file, if the store has it */
/* Does a present entry map the block of zeros? Then it has no struct page, and counts nowhere. */
static inline bool entry_is_zero(const struct virt *v, uint64_t entry)
{
	return arena_pte_pfn(entry) >= v->zero_pfn;
}
/* May a read fault of this VMA be served by it, where a leaf fits? */
bool zero_allowed(const struct vma *vma);
/* The entry for one of its pages, or for all of it. */
uint64_t zero_entry(const struct vma *vma, pfn_t pfn, bool leaf);

/* ---- fault.c ---- */

bool entry_permits(uint64_t entry, uint32_t access);
/* As vm_fault(), but memory that is short is ARENA_E_NO_MEMORY. addr is page aligned. */
int fault_handle(struct mm *mm, uint64_t addr, uint32_t access, unsigned cpu,
		 struct fault_refusal *refusal);
/* What a private mapping has at addr, if it has something, is to be nobody else's. *done: it was not, and is
 * now. ARENA_E_AGAIN as of cow_fault(). */
int fault_make_own(struct vma *vma, uint64_t addr, unsigned cpu, bool *done);

/* A private mapping's write to a page that its object has in frame `from`: copy it. */
int fault_copy(struct vma *vma, uint64_t addr, unsigned cpu, pfn_t from);

/* ---- file_io.c ---- */
void files_init(struct virt *v);

/* ---- cow.c ---- */

/* Is the frame that this present entry of private memory maps its own alone? */
bool cow_exclusive(const struct mm *mm, uint64_t addr, const struct pte_ref *ref);
/* A write to what a present entry of a private VMA maps, and may not write. ARENA_E_AGAIN: when the
 * flushes posted so far are acknowledged. */
int cow_fault(struct vma *vma, uint64_t addr, unsigned cpu, struct pte_ref *ref);
/* Entries of the range go, move, or are shared: copies under way there end as they are. */
void cow_forget(struct mm *mm, uint64_t start, uint64_t end);
/* A snapshot's page that an object has, too, is to be the snapshot's own: a piece around it is copied, and
 * the flush that tells is mm->push_seq. */
int cow_push(struct vma *vma, uint64_t addr, unsigned cpu, struct pte_ref *ref);
void cow_for_each_block(const struct mm *mm, void (*f)(void *ctx, pfn_t block), void *ctx);

/* ---- fork.c ---- */

int mm_copy_memory(struct mm *parent, struct mm *child);
/* The entries of [start, end), which lies in `from`, in `to` as well, at addresses that are `shift` further. */
int share_entries(struct vma *from, struct vma *to, uint64_t start, uint64_t end, uint64_t shift);
/* n frames from pfn on, 1 or a leaf's, are copied for `to`. ARENA_E_NO_MEMORY. */
int copy_block(struct vma *to, uint64_t addr, pfn_t pfn, unsigned n);

/* ---- flush.c ---- */

int limbo_reserve(struct mm *mm, uint32_t n); /* room for n more items */
void limbo_add(struct mm *mm, enum limbo_kind kind, uint32_t number, unsigned pages);
void flush_post(struct mm *mm, enum arena_flush_op op, uint64_t start, uint64_t end);
/* Add to *w a wait for everything posted to mm so far. Without memory for it: no wait. */
void flush_wait_add(struct flush_wait *w, struct mm *mm);
void flush_drop_all(struct mm *mm); /* the mm is dying */
void limbo_forget(struct mm *mm);
/* The flush that covers everything the client may have mapped without an entry. */
uint64_t limbo_last(const struct mm *mm);
/* mm_flush_pending() may have changed from what it was before. */
void flush_note_pending(struct mm *mm, bool before);

/* ---- slot.c ---- */

int slot_get(struct mm *mm, struct domain *d, bool readonly, uint32_t *slot, bool *is_new);
void slot_use(struct mm *mm, uint32_t slot);
void slot_unuse(struct mm *mm, uint32_t slot);
void slot_linger(struct mm *mm, uint32_t slot); /* nobody uses it any more */
void slot_end_lingering(struct mm *mm, uint64_t acked);
void slot_free_all(struct mm *mm);
int slot_copy_all(struct mm *to, const struct mm *from); /* under the same numbers */

/* ---- object.c ---- */

int object_create(struct virt *v, enum object_kind kind, struct domain *d, const char *name,
		  const struct credentials *cred, uint32_t mode, struct object **out);
struct object *object_by_name(struct virt *v, const char *name);
/* Ends the object when nothing refers to it any more (and, with a name, it is unlinked). */
void object_release(struct object *o);
/* The frame of a page of the object, PFN_NONE if absent; *chunk as found. */
pfn_t object_frame(struct object *o, uint64_t pgoff, struct chunk **chunk);
int object_add_frame(struct object *o, uint64_t pgoff, pfn_t pfn, bool leaf);
int object_resize(struct object *o, uint64_t size, const struct mm *caller,
		  struct flush_wait *wait);
/* Recovery: an object of a record that was checked, without frames; and its end as an index. */
int object_adopt(struct virt *v, struct object_record *rec, struct domain *d, struct object **out);
void object_forget(struct object *o);
uint32_t object_checksum(const struct object_record *r);
/* Free the pages of [from, to), whole ones; private copies of them stay. */
int object_punch(struct object *o, uint64_t from, uint64_t to, const struct mm *caller,
		 struct flush_wait *wait);
/* An object of a file; key: its domain, device and inode. */
int object_create_file(struct virt *v, struct domain *d, const char *path, const uint64_t key[3],
		       uint64_t size, const struct credentials *cred, struct object **out);
#define OBJECT_IS_FILE (1u << 30) /* in mode */
/* Drop the frame of a page that is there. */
void object_drop_page(struct object *o, uint64_t pgoff);
/* Shared anonymous memory is promised as a whole, unless it was made with MAP_NORESERVE. */
#define OBJECT_NORESERVE (1u << 31) /* in mode */
void object_account(struct object *o);
bool object_leaf_fits(const struct object *o, uint64_t chunk_index);

/* ---- segment.c ---- */
struct handle *mm_handle(const struct mm *mm, uint32_t handle);
void mm_close_handles(struct mm *mm);
int handle_copy_all(struct mm *to, const struct mm *from); /* the slots are there */
void object_place(struct object *o, uint64_t len); /* give it a common address if it has none */

/* ---- account.c ---- */

/* Count v's pages in (sign 1) or out (-1) of its mm's statistics and of what is committed. */
void vma_count(const struct vma *v, int sign);
uint64_t limit_of_process(pid_t pid, enum vm_limit which);
/* May so many pages of such a mapping come on top? ARENA_E_NO_MEMORY (RLIMIT_DATA). */
int mm_may_expand(const struct mm *mm, uint32_t flags, uint32_t prot, uint64_t pages);
/* May so many pages be promised? ARENA_E_NO_MEMORY as overcommit_memory says. */
int vm_enough_memory(const struct mm *mm, uint64_t pages);
/* Flags of a mapping that is made now, with VM_ACCOUNT and VM_NORESERVE as they are due. */
uint32_t vm_account_flags(const struct virt *v, uint32_t flags, uint32_t prot);
bool map_count_ok(const struct mm *mm, unsigned more);
struct vm_usage {
	uint64_t pages, data, accounted, locked;
};
/* What a range of the address space has of each. */
void mm_range_usage(const struct mm *mm, uint64_t start, uint64_t end, struct vm_usage *out);
static inline uint64_t mm_limit(const struct mm *mm, enum vm_limit which)
{
	return mm->virt->limit((pid_t)mm->record->pid, which);
}

/* vma_isolate() for calls that max_map_count bounds. */
int vma_isolate_counted(struct mm *mm, uint64_t start, uint64_t end);

/* ---- mmap.c ---- */

/* [addr, addr + len) rounded up to pages, inside the window and outside the direct map. */
int range_check(const struct mm *mm, uint64_t addr, uint64_t len, uint64_t *end);
int zap_and_flush(struct mm *mm, uint64_t start, uint64_t end);
/* Where `len` bytes that are asked for go: t->start. */
int mmap_place(struct mm *mm, const struct vm_mmap_args *a, uint64_t len, struct vma_template *t);
int unmap_range(struct mm *mm, uint64_t start, uint64_t end);

/* ---- mlock.c ---- */

/* mlock_future_check: may so many more pages be locked? ARENA_E_AGAIN, ARENA_E_PERMISSION. */
int mm_may_lock(const struct mm *mm, uint32_t flags, uint64_t pages);
bool mm_can_lock(const struct mm *mm);
/* n entries of locked VMAs more, or less, point to the block. */
void page_mlock(struct virt *v, pfn_t head, uint32_t n);
void page_munlock(struct virt *v, pfn_t head, uint32_t n);
void mm_recover_mlock(struct mm *mm); /* after a crash: the index from the VMAs */

/* ---- policy.c ---- */

bool policy_is_valid(const struct virt *v, const struct arena_mm_header *h);
/* Frames for this mm come from where its policy says. */
void policy_apply(const struct mm *mm, struct alloc_request *rq);
/* Movable frames that are to be mapped at addr of v as private memory. */
int anon_alloc(const struct vma *v, uint64_t addr, unsigned order, unsigned gfp, unsigned cpu,
	       pfn_t hint, struct alloc_result *out);

/* ---- stack.c ---- */

/* The VMA of addr, a stack grown down to it if there is one below which it lies; NULL. */
struct vma *find_extend_vma(struct mm *mm, uint64_t addr);
/* Where nothing else may begin above, because a stack's guard gap is there. */
uint64_t vma_start_gap(const struct vma *v);

/* ---- collapse.c ---- */

/* MADV_COLLAPSE of part of v. *again: rights were taken; flush, and call once more. */
int collapse_range(struct vma *v, uint64_t start, uint64_t end, bool settled, bool *again);

/* ---- gather.c ---- */

/* ARENA_MADV_GATHER of part of v; *again as above. */
int gather_range(struct vma *v, uint64_t start, uint64_t end, bool settled, bool *again);

/* ---- pin.c ---- */
static inline uint32_t page_pins(const struct page *page)
{
	return page->flags & PG_PINNED ? page->pin_count : 0;
}
/* The frame of addr if it is there (and writable): head and number. NULL: absent, or no page of ours
 * to hold (vm_normal_page). */
struct page *follow_page(struct mm *mm, uint64_t addr, bool write, pfn_t *pfn);
/* The head behind an entry, NULL for what is mapped by number (VM_PFNMAP) and for the zero page: nobody
 * may count, move or free such a frame through this mapping. */
struct page *vm_normal_page(const struct vma *v, uint64_t entry);
void mm_unpin_all(struct mm *mm);
void mm_recover_pin_counts(struct mm *mm); /* when the frames' references are right again */
/* Each pinned page's head, once a pin. */
void mm_for_each_pin(struct mm *mm, void (*fn)(void *arg, pfn_t head), void *arg);
/* After a crash: the first n records, for which there is room in the index, made whole, and counts; the
 * references are the caller's to count. How many were not as they should be. */
unsigned mm_recover_pins(struct mm *mm, uint32_t n);
bool mm_pins_are_valid(const struct mm *mm);

/* ---- pin_index.c ---- */

/* Room for the first n records. ARENA_E_NO_MEMORY. */
int pin_index_reserve(struct mm *mm, uint32_t n);
void pin_index_free(struct mm *mm);
/* A free record, which is the caller's; and one that is free again. ARENA_E_NO_MEMORY. */
int pin_index_take(struct mm *mm, uint32_t *record);
void pin_index_give(struct mm *mm, uint32_t record);
/* The record covers [start, end), where it may have covered more or less before, from the same start. */
void pin_index_set(struct mm *mm, uint32_t record, uint64_t start, uint64_t end);
/* A record that covers addr. */
bool pin_index_find(const struct mm *mm, uint64_t addr, uint32_t *record);
/* All records in use are below. */
uint32_t pin_index_top(const struct mm *mm);
/* range: the pages of a record, 0 if it is free, and where they begin. */
typedef uint32_t (*pin_range)(const struct mm *mm, uint32_t record, uint64_t *start);
void pin_index_rebuild(struct mm *mm, uint32_t n, pin_range range);
bool pin_index_is_valid(const struct mm *mm, pin_range range);

/* ---- pages.c ---- */
bool direct_contains(const struct mm *mm, uint64_t start, uint64_t end);

static inline bool range_ok(uint64_t addr, uint64_t len)
{
	return len && addr + len > addr;
}

static inline bool window_contains(const struct mm *mm, uint64_t start, uint64_t end)
{
	return start >= mm->header->window_base && end > start &&
	       end <= mm->header->window_base + mm->header->window_size;
}

/* Page of its object, or of the window at the time it was first mapped: mremap keeps it. */
static inline uint64_t vma_pgoff(const struct vma *vma, uint64_t addr)
{
	return vma->pgoff + ((addr - vma->start) >> ARENA_PAGE_SHIFT);
}

/* What an anonymous frame at addr has in `index`: linear in the VMA, whose pgoff moves with it. */
static inline uint32_t vma_anon_index(const struct vma *vma, uint64_t addr)
{
	uint64_t pgoff = vma_pgoff(vma, addr);

	if (!vma->object && !vma->origin)
		pgoff -= vma->mm->header->window_base >> ARENA_PAGE_SHIFT;
	return (uint32_t)pgoff;
}

static inline bool vma_alike(const struct vma *a, const struct vma *b)
{
	return a->flags == b->flags && a->prot == b->prot && a->object == b->object &&
	       a->origin == b->origin && a->slot == b->slot && a->end == b->start &&
	       a->pgoff + ((a->end - a->start) >> ARENA_PAGE_SHIFT) == b->pgoff;
}

#endif
