/* SPDX-License-Identifier: MIT */
/*
 * file.c - files that are mapped: their objects, faults, read-ahead, and their size.
 *
 * Truth: the object's record with device and inode, and its descriptors in the store (file-ID, and filew-ID
 * of the first who could write). A frame becomes the object's when it has been read: it is claimed
 * with mapping 0, which recovery frees, and the store of its object's id makes it a page of the file.
 *
 * Others change the file as they like. Its size is looked at by each fault and at each interval: what lies
 * behind a new end goes, and where it grew the rest of its last page is read. What they write into pages that
 * are cached is not seen until those are dropped.
 *
 * Read-ahead: a fault behind the last one's window doubles it, from 4 pages to read_ahead_kb;
 * MADV_RANDOM reads one page, MADV_SEQUENTIAL the whole window at once.
 */
#include <fcntl.h>
#include <signal.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "daemon/store/store.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

#define READ_AHEAD_FIRST 4u
#define MAP_AROUND_PAGES 32u

/* ---- objects ------------------------------------------------------------------------------------ */

static struct file *file_new(struct object *o)
{
	struct file *f = mem_alloc(sizeof(*f));

	if (!f)
		return NULL;
	f->object = o;
	f->fd = f->wfd = -1;
	LIST_INIT(&f->ios);
	TAILQ_INIT(&f->requests);
	f->key[0] = domain_id(o->domain);
	f->key[1] = o->record->dev;
	f->key[2] = o->record->ino;
	return f;
}

/* Make what a FILE object has beside its record. */
int file_adopt(struct virt *v, struct object *o)
{
	struct object *twin;

	o->file = file_new(o);
	if (!o->file)
		return ARENA_E_NO_MEMORY;
	HASH_FIND(by_name, v->files.by_key, o->file->key, sizeof(o->file->key), twin);
	if (!twin)
		HASH_ADD_KEYPTR(by_name, v->files.by_key, o->file->key, sizeof(o->file->key), o);
	if (twin || o->hash_failed) {
		free(TAKE_PTR(o->file));
		return twin ? ARENA_E_EXISTS : ARENA_E_NO_MEMORY;
	}
	v->files.nr_files++;
	file_bits_enter(o->file);
	return 0;
}

struct object *file_find(struct virt *v, const uint64_t key[3])
{
	struct object *o;

	HASH_FIND(by_name, v->files.by_key, key, 3 * sizeof(*key), o);
	return o;
}

static int create_file(struct mm *mm, const uint64_t key[3], uint64_t size, int fd,
		       struct object **out)
{
	struct virt *v = mm->virt;
	struct credentials cred = {.uid = mm->record->uid, .gid = mm->record->gid};
	uint32_t id = v->state->header->next_object;
	char path[sizeof(((struct object_record *)0)->path)];
	int r;

	os_file_path(fd, path, sizeof(path));
	/* What the truth names is in the store. */
	r = store_add_number("file", id, fd);
	if (!r)
		r = object_create_file(v, mm->domain, path, key, size, &cred, out);
	if (r) {
		store_remove_number("file", id);
		return r;
	}
	(*out)->file->fd = fd;
	return 0;
}

/* As mmap(2) judges a descriptor. */
static int check_descriptor(struct file_source *src, struct os_file_id *id)
{
	bool shared = (src->flags & MAP_TYPE) == MAP_SHARED;
	int flags = os_file_flags(*src->fd), r;
	unsigned sealed;

	if (flags < 0 || flags & O_PATH)
		return ARENA_E_BAD_FD;
	r = os_file_id(*src->fd, id);
	if (r)
		return r;
	if ((flags & O_ACCMODE) == O_WRONLY)
		return ARENA_E_ACCESS;
	src->maywrite = !shared || (flags & O_ACCMODE) == O_RDWR;
	if (shared && (src->prot & PROT_WRITE) && !src->maywrite)
		return ARENA_E_ACCESS;
	if (!id->regular)
		return ARENA_E_NO_DEVICE;
	if (src->flags & MAP_GROWSDOWN)
		return ARENA_E_INVALID;
	sealed = os_file_seals(*src->fd) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
	if (shared && sealed && (src->prot & PROT_WRITE))
		return ARENA_E_PERMISSION;
	if (shared && sealed)
		src->maywrite = false;
	return 0;
}

int file_open(struct mm *mm, struct file_source *src, struct object **out)
{
	struct virt *v = mm->virt;
	struct os_file_id id;
	int r = check_descriptor(src, &id), fd = *src->fd;
	bool writes = (src->flags & MAP_TYPE) == MAP_SHARED && src->maywrite;
	uint64_t key[3];
	struct object *o;

	if (r)
		return r;
	if (id.size > (uint64_t)UINT32_MAX << ARENA_PAGE_SHIFT)
		id.size = (uint64_t)UINT32_MAX << ARENA_PAGE_SHIFT;
	key[0] = domain_id(mm->domain);
	key[1] = id.dev;
	key[2] = id.ino;
	o = file_find(v, key);
	if (!o) {
		r = create_file(mm, key, id.size, fd, &o);
		if (r)
			return r;
		*src->fd = -1;
	}
	if (o->file->lost && !store_add_number("file", o->id, fd)) {
		o->file->fd = fd;
		o->file->lost = false;
		*src->fd = -1;
	}
	if (writes && o->file->wfd < 0) {
		r = store_add_number("filew", o->id, fd);
		if (r) {
			object_release(o);
			return r;
		}
		o->file->wfd = fd;
		*src->fd = -1;
	}
	/* Somebody will map it again. */
	o->file->last = false;
	*out = o;
	return 0;
}

void file_take_descriptors(struct object *o)
{
	struct file *f = o->file;
	struct os_file_id id;

	f->fd = store_take_number("file", o->id);
	f->wfd = store_take_number("filew", o->id);
	if (f->fd >= 0 &&
	    (os_file_id(f->fd, &id) || id.dev != o->record->dev || id.ino != o->record->ino)) {
		store_remove_number("file", o->id);
		closep(&f->fd);
		f->fd = -1;
	}
	if (f->wfd >= 0 &&
	    (os_file_id(f->wfd, &id) || id.dev != o->record->dev || id.ino != o->record->ino)) {
		store_remove_number("filew", o->id);
		closep(&f->wfd);
		f->wfd = -1;
	}
	f->lost = f->fd < 0;
	if (f->lost)
		log_warning("recovery: %.255s is not open any more: what is not cached of it is "
			    "lost to who maps it",
			    o->record->name);
}

void file_forget(struct object *o)
{
	struct file *f = o->file;

	HASH_DELETE(by_name, o->virt->files.by_key, o);
	o->virt->files.nr_files--;
	LIST_REMOVE(f, same_bit);
	closep(&f->fd);
	closep(&f->wfd);
	free(TAKE_PTR(o->file));
}

/* Nothing is left of it but its record. */
void file_end(struct object *o)
{
	struct virt *v = o->virt;
	struct file *f = o->file;

	ASSERT(LIST_EMPTY(&f->ios) && TAILQ_EMPTY(&f->requests) && !f->nr_dirty);
	HASH_DELETE(by_name, v->files.by_key, o);
	v->files.nr_files--;
	file_bits_leave(f);
	if (f->fd >= 0)
		store_remove_number("file", o->id);
	if (f->wfd >= 0)
		store_remove_number("filew", o->id);
	file_close(v, f->fd);
	if (f->wfd != f->fd)
		file_close(v, f->wfd);
	free(TAKE_PTR(o->file));
}

/* ---- size ------------------------------------------------------------------------------------------- */

/* The file goes on where its last page was cached: what is there now takes the place of zeros. */
static void fill_tail(struct object *o, uint64_t size)
{
	uint64_t old = o->size, n = MIN(size, ALIGN_UP(old, ARENA_PAGE_SIZE)) - old;
	struct chunk *chunk;
	pfn_t pfn;

	if (!n)
		return;
	frozen_vacate(o, old >> ARENA_PAGE_SHIFT, (old >> ARENA_PAGE_SHIFT) + 1, false);
	pfn = object_frame(o, old >> ARENA_PAGE_SHIFT, &chunk);
	if (pfn != PFN_NONE)
		o->virt->files.ops->read(
			o->file->fd, (char *)domain_address(o->domain, pfn) + old % ARENA_PAGE_SIZE,
			n, old);
}

int file_refresh_size(struct object *o, struct flush_wait *wait)
{
	uint64_t size;

	/* Without a descriptor it stays as it was. */
	if (o->file->fd < 0 || o->virt->files.ops->size(o->file->fd, &size))
		return 0;
	size = MIN(size, (uint64_t)UINT32_MAX << ARENA_PAGE_SHIFT);
	if (size < o->size)
		return object_resize(o, size, NULL, wait);
	if (size > o->size) {
		fill_tail(o, size);
		o->size = size;
		truth_store(&o->record->size, size);
	}
	return 0;
}

/* ---- reading ------------------------------------------------------------------------------------------ */

static struct file_io *find_read(const struct object *o, uint64_t pgoff)
{
	struct file_io *io;

	LIST_FOREACH(io, &o->file->ios, in_file)
		if (io->kind == FILE_READ && pgoff >= io->pgoff[0] && pgoff - io->pgoff[0] < io->nr)
			return io;
	return NULL;
}

static int add_page(struct file_io *io, uint64_t pgoff, unsigned cpu)
{
	struct object *o = io->object;
	struct alloc_request rq = {
		.domain = o->domain,
		.gfp = GFP_USER_MOVABLE | GFP_NO_ZERO | ARENA_GFP_NOWARN,
		.cpu = cpu,
		.hint = io->nr ? io->pfn[io->nr - 1] + 1 : PFN_NONE,
		.owner = PG_OBJECT,
		.index = (uint32_t)pgoff,
	};
	struct alloc_result got;
	int r = alloc_pages(o->virt->phys, &rq, &got);

	if (r)
		return r;
	io->pgoff[io->nr] = (uint32_t)pgoff;
	io->pfn[io->nr++] = got.pfn;
	return 0;
}

/* Begin to read up to n pages from pgoff on, the first of which is missing. */
static int start_read(struct object *o, uint64_t pgoff, uint64_t n, unsigned cpu,
		      struct file_io **out)
{
	struct file_io *io = file_io_new(o, FILE_READ, o->file->fd);
	struct chunk *chunk;
	uint64_t i;
	int r = io ? 0 : ARENA_E_NO_MEMORY;

	n = MIN(n, (uint64_t)FILE_IO_PAGES);
	for (i = 0; i < n && !r; i++) {
		if (pgoff + i >= file_pages(o) ||
		    (i &&
		     (object_frame(o, pgoff + i, &chunk) != PFN_NONE || find_read(o, pgoff + i))))
			break;
		r = add_page(io, pgoff + i, cpu);
	}
	if (!io || !io->nr) {
		if (io)
			file_io_free(io);
		return r ? r : ARENA_E_NO_MEMORY;
	}
	if (out)
		*out = io;
	file_io_submit(io);
	return 0;
}

static uint64_t read_ahead_pages(const struct virt *v)
{
	return MAX(state_tunable(v->state, TUNABLE_READ_AHEAD_KB) / 4, UINT64_C(1));
}

static uint64_t read_window(struct vma *vma, uint64_t addr)
{
	uint64_t max = read_ahead_pages(vma->mm->virt), n = MIN(max, (uint64_t)READ_AHEAD_FIRST);

	if (vma->flags & VM_RAND_READ)
		return 1;
	if (vma->flags & VM_SEQ_READ)
		n = max;
	else if (addr == vma->ahead_next && vma->ahead_window)
		n = MIN((uint64_t)vma->ahead_window * 2, max);
	n = MIN(n, (uint64_t)FILE_IO_PAGES);
	vma->ahead_window = (uint32_t)n;
	vma->ahead_next = addr + (n << ARENA_PAGE_SHIFT);
	return n;
}

/* The page is not there: ARENA_E_WAIT_IO. */
static int need_page(struct vma *vma, uint64_t addr, unsigned cpu, struct fault_refusal *refusal)
{
	struct object *o = vma->object;
	struct virt *v = o->virt;
	uint64_t pgoff = vma_pgoff(vma, addr);
	struct file_io *io = find_read(o, pgoff);
	int r = 0;

	if (o->file->fd < 0 ||
	    (v->files.retry && v->files.retry->object == o->id && v->files.retry->pgoff == pgoff)) {
		*refusal = (struct fault_refusal){.signo = SIGBUS, .code = BUS_ADRERR};
		return 0;
	}
	if (!io)
		r = start_read(o, pgoff, read_window(vma, addr), cpu, &io);
	if (r)
		return r;
	v->files.wanted = io;
	v->files.wanted_page = pgoff;
	return ARENA_E_WAIT_IO;
}

void file_readahead(struct object *o, uint64_t first, uint64_t last)
{
	struct chunk *chunk;

	if (o->file->fd < 0 || file_refresh_size(o, NULL))
		return;
	/* As much as it takes, but not all of the memory there is. */
	last = MIN(last, first + phys_free_pages(o->virt->phys) / 4);
	for (last = MIN(last + 1, file_pages(o)); first < last; first++) {
		if (object_frame(o, first, &chunk) != PFN_NONE || find_read(o, first))
			continue;
		if (start_read(o, first, last - first, 0, NULL))
			return;
	}
}

/* How many pages are missing, and the first of them. */
static uint64_t count_missing(struct object *o, uint64_t at, uint64_t last, uint64_t *first)
{
	uint64_t n = 0;

	while (at < last) {
		struct chunk *chunk;
		bool there = object_frame(o, at, &chunk) != PFN_NONE;

		if (chunk && chunk->nr == ARENA_LEAF_PAGES) {
			at = ALIGN_DOWN(at, (uint64_t)ARENA_LEAF_PAGES) + ARENA_LEAF_PAGES;
			continue;
		}
		if (!there && !n++)
			*first = at;
		at++;
	}
	return n;
}

int file_need(struct object *o, uint64_t first, uint64_t last)
{
	struct virt *v = o->virt;
	const struct io_wait *retry = v->files.retry;
	uint64_t missing = first, nr;
	struct file_io *io;
	int r = file_refresh_size(o, NULL);

	if (r)
		return r;
	last = MIN(last, file_pages(o));
	nr = count_missing(o, first, last, &missing);
	if (!nr)
		return 0;
	if (o->file->fd < 0 || (retry && retry->object == o->id && retry->pgoff == missing))
		return ARENA_E_FAULT;
	/* What is read must not drive out what was read before. */
	if (nr > phys_free_pages(v->phys))
		return ARENA_E_NO_MEMORY;
	file_readahead(o, missing, last - 1);
	io = find_read(o, missing);
	if (!io)
		return ARENA_E_NO_MEMORY;
	v->files.wanted = io;
	v->files.wanted_page = missing;
	return ARENA_E_WAIT_IO;
}

/* A page that was read becomes the object's. */
static bool enter_page(struct object *o, uint32_t pgoff, pfn_t pfn)
{
	struct page *page = pfn_to_page(o->virt->phys, pfn);
	struct chunk *chunk;

	if (pgoff >= file_pages(o) || object_frame(o, pgoff, &chunk) != PFN_NONE || !o->nr_vmas)
		return false;
	truth_store(&page->mapping, o->id);
	if (!object_add_frame(o, pgoff, pfn, false))
		return true;
	truth_store(&page->mapping, 0u);
	return false;
}

void file_read_done(struct file_io *io)
{
	struct object *o = io->object;
	struct io_wait *w;

	for (unsigned i = 0; i < io->nr; i++)
		if (i >= io->done || io->stale || !enter_page(o, io->pgoff[i], io->pfn[i]))
			put_page(o->virt->phys, io->pfn[i]);
	state_event(o->virt->state, EV_PGPGIN, (uint64_t)io->done << (ARENA_PAGE_SHIFT - 10));
	if (io->error)
		log_info("cannot read %.255s: %s", o->record->name, error_text(io->error));
	while ((w = LIST_FIRST(&io->waiters))) {
		LIST_REMOVE(w, in_io);
		w->io = NULL;
		/* What is stale is not there, and is read again. */
		io_wait_end(w, io->stale || w->pgoff - io->pgoff[0] < io->done ? 0 : io->error);
	}
	file_io_free(io);
	object_release(o);
}

/* ---- entries ----------------------------------------------------------------------------------------- */

bool file_entry(const struct vma *v, uint64_t pgoff, pfn_t pfn, uint64_t *addr, struct pte_ref *ref)
{
	if (pgoff < v->pgoff || pgoff - v->pgoff >= (v->end - v->start) >> ARENA_PAGE_SHIFT)
		return false;
	*addr = v->start + ((pgoff - v->pgoff) << ARENA_PAGE_SHIFT);
	return pgtable_lookup(v->mm, *addr, ref) && arena_pte_pfn(*ref->entry) == pfn;
}

/* ---- faults -------------------------------------------------------------------------------------------- */

bool file_may_write(const struct virt *v, pfn_t pfn)
{
	uint32_t flags = pfn_to_page(v->phys, pfn)->flags;

	return (flags & PG_DIRTY) && (!(flags & PG_WRITEBACK) || flags & PG_REDIRTY);
}

/* An entry for a frame of the object, where none is. */
static int install(struct vma *vma, uint64_t addr, pfn_t pfn, bool ahead)
{
	struct phys *p = vma->mm->virt->phys;
	struct pte_ref ref;
	int r = pgtable_get(vma->mm, addr, 0, &ref);

	if (r)
		return r;
	get_page(p, pfn);
	map_frame(vma, &ref, pfn, vma_entry(vma, pfn, false, false, ahead, true));
	return 0;
}

static bool entry_empty(struct mm *mm, uint64_t addr)
{
	struct pte_ref ref;

	return !pgtable_lookup(mm, addr, &ref) || !*ref.entry;
}

/* What is cached from addr on. */
static int map_around(struct vma *vma, uint64_t addr)
{
	uint64_t pages = file_pages(vma->object);
	struct chunk *chunk;

	for (unsigned i = 0; i < MAP_AROUND_PAGES && addr < vma->end;
	     i++, addr += ARENA_PAGE_SIZE) {
		uint64_t pgoff = vma_pgoff(vma, addr);
		pfn_t pfn;
		int r;

		if (pgoff >= pages || (i && !entry_empty(vma->mm, addr)))
			break;
		pfn = object_frame(vma->object, pgoff, &chunk);
		if (pfn == PFN_NONE)
			break;
		r = install(vma, addr, pfn, i > 0);
		if (r)
			return i ? 0 : r;
	}
	return 0;
}

/* The first write to a clean page: dirty, and then writable. */
static int make_writable(struct vma *vma, uint64_t addr, pfn_t pfn)
{
	struct pte_ref ref;
	uint64_t old;

	file_dirty(vma->object, pfn);
	if (entry_empty(vma->mm, addr))
		return install(vma, addr, pfn, false);
	pgtable_lookup(vma->mm, addr, &ref);
	old = *ref.entry;
	pte_switch(vma->mm, &ref, vma_entry(vma, pfn, false, false, old & ARENA_PTE_AHEAD, true));
	return 0;
}

int file_fault(struct vma *vma, uint64_t addr, uint32_t access, unsigned cpu,
	       struct fault_refusal *refusal)
{
	struct object *o = vma->object;
	uint64_t pgoff = vma_pgoff(vma, addr);
	struct chunk *chunk;
	pfn_t pfn;
	int r = file_refresh_size(o, NULL);

	if (r)
		return r;
	if (pgoff >= file_pages(o)) {
		*refusal = (struct fault_refusal){.signo = SIGBUS, .code = BUS_ADRERR};
		return 0;
	}
	pfn = object_frame(o, pgoff, &chunk);
	if (pfn == PFN_NONE)
		return need_page(vma, addr, cpu, refusal);
	if (access == PROT_WRITE && !(vma->flags & VM_SHARED))
		return fault_copy(vma, addr, cpu, pfn);
	if (access == PROT_WRITE)
		return make_writable(vma, addr, pfn);
	return map_around(vma, addr);
}
