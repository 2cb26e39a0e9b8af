/* SPDX-License-Identifier: MIT */
/*
 * virt_fake.h - a small machine and fake clients for the tests of the virt room.
 *
 * A fake client is what docs/protocol.md says of one: it walks the page tables in a read-only
 * mapping of its mm file, reads and writes frames through the file that an entry's slot names,
 * applies the flush ring and stores flush_ack when the test says so. `tlb` is everything it may
 * have mapped: an item comes with a refill and goes with the acknowledged flush that covers it.
 * client_check_tlb() says whether each item's frame is still what it was when it was mapped.
 */
#ifndef TESTS_VIRT_FAKE_H
#define TESTS_VIRT_FAKE_H

#include "tests/virt_fake_machine.h"

/* ---- clients ------------------------------------------------------------------------------- */

struct tlb_item {
	uint64_t start, end;
	pfn_t pfn;
	bool write;
	uint32_t owner, mapping, index, domain; /* of its first page, as it was mapped */
};

struct fake_client {
	struct fake_machine *m;
	struct mm *mm;
	uint32_t id;
	struct credentials cred;
	const uint8_t *file;
	struct arena_channel_header *channel;
	struct arena_flush_entry *ring;
	int slot_fd[ARENA_MAX_SLOTS];
	uint32_t slot_domain[ARENA_MAX_SLOTS]; /* id; 0: none */
	struct tlb_item *tlb;
	size_t nr_tlb, cap_tlb;
	uint64_t acked;
	bool no_tlb;          /* do not keep one */
	const uint8_t *zeros; /* the block of ARENA_SLOT_ZERO; NULL: not asked for */
};

/* The number of a page of the zero block, not of a frame? */
static inline bool pfn_is_zeros(const struct fake_machine *m, pfn_t pfn)
{
	return pfn != PFN_NONE && pfn >= phys_nr_frames(m->phys);
}

/* Ask for the file of zeros, as libarena does when it has attached. */
static inline void client_use_zeros(struct fake_client *c)
{
	int fd = vm_zero_file(c->mm), ro;
	void *at;

	assert_true(fd >= 0);
	ro = os_reopen_readonly(fd);
	assert_true(ro >= 0);
	assert_int_equal(os_map(ro, phys_nr_frames(c->m->phys) << ARENA_PAGE_SHIFT, ARENA_LEAF_SIZE,
				OS_MAP_READ, &at),
			 0);
	close(ro);
	c->zeros = at;
}

/* Of this worker: what the client shares with it, and holds of it. */
static inline void client_reborn(struct fake_client *c)
{
	unsigned i;

	c->channel = mm_channel(c->mm);
	c->ring = (struct arena_flush_entry *)(void *)((uint8_t *)mm_channel(c->mm) +
						       ARENA_CHANNEL_FLUSH);
	for (i = 0; i < ARENA_MAX_SLOTS; i++) {
		struct domain *d = c->slot_domain[i] ? domain_by_id(c->m->phys, c->slot_domain[i])
						     : NULL;

		c->slot_fd[i] = d ? domain_fd(d) : -1;
	}
}

static inline int client_try_up(struct fake_machine *m, uid_t uid, pid_t pid, uint64_t base,
				struct fake_client **out)
{
	struct fake_client *c = calloc(1, sizeof(*c));
	struct mm_params params = {.window_base = base, .window_size = TEST_WINDOW, .comm = "fake"};
	void *at;
	int r;

	assert_non_null(c);
	c->m = m;
	c->cred = (struct credentials){.pid = pid, .uid = uid, .gid = uid};
	params.cred = &c->cred;
	r = mm_create(m->virt, &params, &c->mm);
	if (r) {
		free(c);
		return r;
	}
	assert_int_equal(os_map(mm_file(c->mm), 0, ARENA_MM_FILE_SIZE, OS_MAP_READ, &at), 0);
	c->file = at;
	c->id = mm_id(c->mm);
	c->slot_domain[0] = domain_id(mm_domain(c->mm));
	client_reborn(c);
	*out = c;
	return 0;
}

static inline struct fake_client *client_up(struct fake_machine *m, uid_t uid, pid_t pid)
{
	struct fake_client *c = NULL;

	assert_int_equal(client_try_up(m, uid, pid, ARENA_WINDOW_BASE, &c), 0);
	return c;
}

static inline struct mm *fake_find(struct fake_machine *m, uint32_t id)
{
	struct mm *mm = NULL;

	while ((mm = mm_next(m->virt, mm)))
		if (mm_id(mm) == id)
			break;
	return mm;
}

/* The child of a fork, attached. */
static inline int client_try_fork(struct fake_client *parent, pid_t pid, struct fake_client **out)
{
	struct fake_client *c = calloc(1, sizeof(*c));
	struct credentials nobody = parent->cred;
	struct mm_params params = {.parent = parent->mm, .comm = "child", .cred = &nobody};
	void *at;
	int r;

	assert_non_null(c);
	nobody.pid = 0;
	c->m = parent->m;
	c->cred = parent->cred;
	c->cred.pid = pid;
	r = mm_create(c->m->virt, &params, &c->mm);
	if (r) {
		free(c);
		return r;
	}
	c->id = mm_id(c->mm);
	assert_int_equal(mm_adopt(c->mm, &c->cred, "child", 0, 0), 0);
	c->mm = fake_find(c->m, c->id);
	assert_int_equal(os_map(mm_file(c->mm), 0, ARENA_MM_FILE_SIZE, OS_MAP_READ, &at), 0);
	c->file = at;
	memcpy(c->slot_domain, parent->slot_domain, sizeof(c->slot_domain));
	client_reborn(c);
	if (parent->zeros)
		client_use_zeros(c);
	*out = c;
	return 0;
}

static inline struct fake_client *client_fork(struct fake_client *parent, pid_t pid)
{
	struct fake_client *c = NULL;

	assert_int_equal(client_try_fork(parent, pid, &c), 0);
	return c;
}

static inline struct fake_client *client_down(struct fake_client *c)
{
	if (!c)
		return NULL;
	assert_int_equal(os_unmap((void *)(uintptr_t)c->file, ARENA_MM_FILE_SIZE), 0);
	if (c->zeros)
		assert_int_equal(os_unmap((void *)(uintptr_t)c->zeros, ARENA_LEAF_SIZE), 0);
	c->nr_tlb = 0; /* the process is dead */
	c->mm = mm_destroy(c->mm);
	free(c->tlb);
	free(c);
	return NULL;
}

/* The client's walk: the entry that decides about addr, 0 if none; *level of it. */
static inline uint64_t client_walk(const struct fake_client *c, uint64_t addr, unsigned *level)
{
	uint32_t table = 0;
	unsigned l;

	for (l = ARENA_TABLE_LEVELS - 1;; l--) {
		const uint64_t *entries =
			(const uint64_t *)(const void *)(c->file + ARENA_MM_TABLES_OFFSET +
							 (uint64_t)table * ARENA_PAGE_SIZE);
		uint64_t e = load_acquire(&entries[arena_table_index(addr, l)]);

		*level = l;
		if (!e || !l || (e & ARENA_PTE_HUGE))
			return e;
		assert_true(e & ARENA_PTE_PRESENT);
		table = (uint32_t)arena_pte_pfn(e);
		assert_true(table <
			    ((const struct arena_mm_header *)(const void *)c->file)->nr_tables);
	}
}

static inline pfn_t client_pfn(const struct fake_client *c, uint64_t addr)
{
	unsigned level;
	uint64_t e = client_walk(c, addr, &level);

	if (!e)
		return PFN_NONE;
	return (pfn_t)(arena_pte_pfn(e) +
		       (level ? (addr & ~ARENA_LEAF_MASK) >> ARENA_PAGE_SHIFT : 0));
}

static inline bool client_is_leaf(const struct fake_client *c, uint64_t addr)
{
	unsigned level;

	return client_walk(c, addr, &level) && level == 1;
}

static inline bool client_permits(uint64_t e, uint32_t access)
{
	uint64_t need = access == PROT_WRITE  ? ARENA_PTE_WRITE
			: access == PROT_EXEC ? ARENA_PTE_EXEC
					      : ARENA_PTE_READ;

	return (e & ARENA_PTE_PRESENT) && (e & need);
}

/* What mem_map says of a frame: the identity that must not change while somebody maps it, but that an
 * object may let it go. */
static inline bool frame_identity(const struct fake_machine *m, pfn_t pfn, struct tlb_item *out)
{
	const struct page *page;
	pfn_t head;

	/* Always the same, and nobody's. */
	if (pfn_is_zeros(m, pfn)) {
		out->owner = out->mapping = out->domain = 0;
		out->index = pfn;
		return true;
	}
	head = compound_head(m->phys, pfn);
	if (head == PFN_NONE)
		return false;
	page = pfn_to_page(m->phys, head);
	out->owner = page->flags & PG_OWNER;
	out->mapping = page->mapping;
	out->index = page->index + (pfn - head);
	out->domain = domain_id(pfn_domain(m->phys, pfn));
	return true;
}

static inline void tlb_add(struct fake_client *c, const struct tlb_item *t)
{
	if (c->nr_tlb == c->cap_tlb) {
		c->cap_tlb = c->cap_tlb ? c->cap_tlb * 2 : 64;
		c->tlb = realloc(c->tlb, c->cap_tlb * sizeof(*c->tlb));
		assert_non_null(c->tlb);
	}
	c->tlb[c->nr_tlb++] = *t;
}

static inline void client_refill(struct fake_client *c, uint64_t addr, uint64_t e, unsigned level)
{
	uint64_t size = level ? ARENA_LEAF_SIZE : ARENA_PAGE_SIZE;
	struct tlb_item t = {.start = addr & ~(size - 1),
			     .pfn = (pfn_t)arena_pte_pfn(e),
			     .write = e & ARENA_PTE_WRITE};
	size_t i;

	if (c->no_tlb)
		return;
	t.end = t.start + size;
	for (i = 0; i < c->nr_tlb; i++)
		if (c->tlb[i].start <= t.start && c->tlb[i].end >= t.end &&
		    c->tlb[i].pfn + ((t.start - c->tlb[i].start) >> ARENA_PAGE_SHIFT) == t.pfn &&
		    c->tlb[i].write == t.write)
			return;
	assert_true(frame_identity(c->m, t.pfn, &t));
	tlb_add(c, &t);
}

/* Where the daemon sees what the entry maps at addr; the slot must be of the frame's domain. */
static inline uint8_t *client_frame(const struct fake_client *c, uint64_t addr)
{
	unsigned level;
	uint64_t e = client_walk(c, addr, &level);
	pfn_t pfn = client_pfn(c, addr);
	struct domain *d;

	if (arena_pte_slot(e) == ARENA_SLOT_ZERO) {
		pfn -= (pfn_t)phys_nr_frames(c->m->phys);
		assert_true(c->zeros && pfn < ARENA_LEAF_PAGES && !(e & ARENA_PTE_WRITE));
		return (uint8_t *)(uintptr_t)c->zeros + PAGE(pfn) + (addr & ~ARENA_PAGE_MASK);
	}
	d = pfn_domain(c->m->phys, pfn);
	assert_non_null(d);
	assert_int_equal(c->slot_fd[arena_pte_slot(e)], domain_fd(d));
	return (uint8_t *)domain_address(d, pfn) + (addr & ~ARENA_PAGE_MASK);
}

static inline void client_ack(struct fake_client *c, uint64_t upto);

/* Has the other clients acknowledge what a call of one of them waits for; or NULL. */
static void (*fake_others_flush)(void);

/* An access: refill if the entry permits it, else fault. NULL: refused, see *refusal. */
static inline uint8_t *client_access(struct fake_client *c, uint64_t addr, uint32_t access,
				     unsigned cpu, struct fault_refusal *refusal)
{
	unsigned level, tries;
	int r;

	struct io_wait wait = {0};

	*refusal = (struct fault_refusal){0};
	for (tries = 0; tries < 5; tries++) {
		uint64_t e = client_walk(c, addr, &level);

		if (client_permits(e, access)) {
			client_refill(c, addr, e, level);
			return client_frame(c, addr);
		}
		/* As the service, which serves the call again when what it waits for is there. */
		virt_io_retry(c->m->virt, &wait);
		r = vm_fault(c->mm, addr, access, cpu, refusal);
		virt_io_retry(c->m->virt, NULL);
		if (r == ARENA_E_WAIT_IO) {
			wait = (struct io_wait){0};
			virt_io_wait(c->m->virt, &wait);
			virt_files_collect(c->m->virt);
			if (wait.pending && fake_others_flush)
				fake_others_flush();
			r = 0;
		}
		if (r == ARENA_E_AGAIN) {
			client_ack(c, mm_flush_posted(c->mm));
			r = 0;
		}
		assert_int_equal(r, 0);
		if (refusal->signo)
			return NULL;
	}
	fail_msg("a fault at %#lx that is resolved again and again", (unsigned long)addr);
	return NULL;
}

static inline uint8_t *client_read(struct fake_client *c, uint64_t addr)
{
	struct fault_refusal refusal;
	uint8_t *at = client_access(c, addr, PROT_READ, 0, &refusal);

	assert_non_null(at);
	return at;
}

static inline uint8_t *client_write(struct fake_client *c, uint64_t addr)
{
	struct fault_refusal refusal;
	uint8_t *at = client_access(c, addr, PROT_WRITE, 0, &refusal);

	assert_non_null(at);
	return at;
}

static inline void assert_refused(struct fake_client *c, uint64_t addr, uint32_t access, int signo,
				  int code)
{
	struct fault_refusal refusal;

	assert_null(client_access(c, addr, access, 0, &refusal));
	assert_int_equal(refusal.signo, signo);
	assert_int_equal(refusal.code, code);
}

static inline bool bytes_are_zero(const uint8_t *p, size_t n)
{
	return !n || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* An object's no longer, in limbo, and nothing maps it any more. */
static inline bool frame_was_let_go(const struct fake_machine *m, const struct tlb_item *now,
				    pfn_t pfn)
{
	const struct page *page = pfn_to_page(m->phys, compound_head(m->phys, pfn));

	/* Or is a snapshot's. */
	return now->owner == PG_OBJECT && !now->mapping &&
	       (page->flags & PG_LIMBO || page->mapcount);
}

/* ---- flushes ------------------------------------------------------------------------------- */

/* Every item is still the frame that was mapped, whoever has changed entries since. */
static inline bool client_check_tlb(const struct fake_client *c)
{
	size_t i;

	for (i = 0; i < c->nr_tlb; i++) {
		const struct tlb_item *t = &c->tlb[i];
		uint64_t pages = (t->end - t->start) >> ARENA_PAGE_SHIFT, n;

		for (n = 0; n<pages; n += pages> 1 ? pages - 1 : 1) {
			struct tlb_item now = {0};

			if (!frame_identity(c->m, t->pfn + (pfn_t)n, &now) ||
			    now.owner != t->owner ||
			    (now.mapping != t->mapping && !frame_was_let_go(c->m, &now, t->pfn)) ||
			    now.index != t->index + n || now.domain != t->domain) {
				fprintf(stderr,
					"mm %u: frame %u mapped at %#lx is another's: owner %#x %u "
					"%u, was %#x %u %u\n",
					c->id, t->pfn + (pfn_t)n,
					(unsigned long)(t->start + PAGE(n)), now.owner, now.mapping,
					now.index, t->owner, t->mapping, t->index + (uint32_t)n);
				return false;
			}
		}
	}
	return true;
}

/* Take [start, end) out of the items: from one item up to two remain. */
static inline void tlb_unmap(struct fake_client *c, uint64_t start, uint64_t end)
{
	size_t i;

	for (i = 0; i < c->nr_tlb;) {
		struct tlb_item t = c->tlb[i], part;

		if (t.end <= start || t.start >= end) {
			i++;
			continue;
		}
		c->tlb[i] = c->tlb[--c->nr_tlb];
		if (t.start < start) {
			part = t;
			part.end = start;
			tlb_add(c, &part);
		}
		if (t.end > end) {
			uint32_t skip = (uint32_t)((end - t.start) >> ARENA_PAGE_SHIFT);

			part = t;
			part.start = end;
			part.pfn += skip;
			part.index += skip;
			tlb_add(c, &part);
		}
	}
}

static inline void tlb_wrprotect(struct fake_client *c, uint64_t start, uint64_t end)
{
	size_t i;

	for (i = 0; i < c->nr_tlb; i++)
		if (c->tlb[i].start < end && c->tlb[i].end > start)
			c->tlb[i].write = false; /* more than asked for: a client may */
}

/* Apply the ring up to `upto` and acknowledge. */
static inline void client_ack(struct fake_client *c, uint64_t upto)
{
	uint64_t seq;

	for (seq = c->acked + 1; seq <= upto; seq++) {
		const struct arena_flush_entry *e = &c->ring[seq % ARENA_FLUSH_ENTRIES];

		if (e->seq != seq) {
			assert_true(e->seq > seq);
			c->nr_tlb = 0;
		} else if (e->op == ARENA_FLUSH_UNMAP) {
			tlb_unmap(c, e->start, e->end);
		} else if (e->op == ARENA_FLUSH_WRPROTECT) {
			tlb_wrprotect(c, e->start, e->end);
		} else {
			c->nr_tlb = 0;
		}
	}
	c->acked = upto;
	store_release(&c->channel->flush_ack, upto);
}

static inline void client_ack_all(struct fake_client *c)
{
	/* Once, unless a worker that dies meanwhile posts another flush. */
	do {
		assert_int_equal(c->channel->flush_head, mm_flush_posted(c->mm));
		client_ack(c, c->channel->flush_head);
		mm_flush_collect(c->mm);
	} while (c->acked < mm_flush_posted(c->mm));
	assert_false(mm_flush_pending(c->mm));
	assert_int_equal(c->mm->limbo.pages, 0);
}

/* With everything acknowledged nothing may be mapped that its entry does not permit. */
static inline bool client_tlb_is_current(const struct fake_client *c)
{
	size_t i;
	uint64_t n;

	for (i = 0; i < c->nr_tlb; i++) {
		const struct tlb_item *t = &c->tlb[i];

		for (n = 0; t->start + PAGE(n) < t->end; n++) {
			unsigned level;
			uint64_t addr = t->start + PAGE(n), e = client_walk(c, addr, &level);

			if (client_pfn(c, addr) != t->pfn + n || !(e & ARENA_PTE_PERM) ||
			    (t->write && !(e & ARENA_PTE_WRITE))) {
				fprintf(stderr, "mm %u: the mapping at %#lx outlived its entry\n",
					mm_id(c->mm), (unsigned long)addr);
				return false;
			}
		}
	}
	return true;
}

/* ---- calls, short -------------------------------------------------------------------------- */

#define MAP_ANON_PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define MAP_ANON_SHARED (MAP_SHARED | MAP_ANONYMOUS)
#define PROT_RW (PROT_READ | PROT_WRITE)

static inline int client_mmap(struct fake_client *c, uint64_t addr, uint64_t len, uint32_t prot,
			      uint32_t flags, uint32_t handle, int64_t offset, uint64_t *out)
{
	struct vm_mmap_args a = {.addr = addr,
				 .len = len,
				 .prot = prot,
				 .flags = flags,
				 .segment = handle,
				 .offset = offset};

	return vm_mmap(c->mm, &a, out);
}

static inline uint64_t client_map(struct fake_client *c, uint64_t len, uint32_t prot,
				  uint32_t flags)
{
	uint64_t at = 0;

	assert_int_equal(client_mmap(c, 0, len, prot, flags, 0, 0, &at), 0);
	return at;
}

static inline uint64_t client_map_segment(struct fake_client *c, uint32_t handle, uint64_t len,
					  uint32_t prot, uint32_t flags, int64_t offset)
{
	uint64_t at = 0;

	assert_int_equal(client_mmap(c, 0, len, prot, flags, handle, offset, &at), 0);
	return at;
}

/* Opens and takes note of the slot's descriptor, as a client would. */
static inline int client_open(struct fake_client *c, const char *name, int oflag, uint32_t mode,
			      struct segment_open *open)
{
	int r;

	*open = (struct segment_open){.name = name, .oflag = oflag, .mode = mode};
	r = mm_open_segment(c->mm, &c->cred, open);
	if (!r && open->slot_new) {
		c->slot_fd[open->slot] = open->slot_fd;
		c->slot_domain[open->slot] = c->mm->slot_records[open->slot].domain;
	}
	return r;
}

static inline unsigned count_vmas(const struct fake_client *c)
{
	struct vma_info info;
	uint64_t from = 0;
	unsigned n = 0;

	for (; mm_next_vma(c->mm, from, &info); from = info.end)
		n++;
	return n;
}

static inline uint64_t test_seed(void)
{
	const char *s = getenv("ARENA_TEST_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : clock_now();

	printf("ARENA_TEST_SEED=%lu\n", (unsigned long)seed);
	fflush(stdout);
	return seed;
}

#endif
