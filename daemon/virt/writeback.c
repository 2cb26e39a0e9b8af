/* SPDX-License-Identifier: MIT */
/*
 * writeback.c - what was written to mapped files gets into them.
 *
 * A page is dirty (PG_DIRTY, truth) from before an entry permits writing until after it was written. Who
 * wants pages written (msync, munmap, an interval, the end of the last mapping) queues a request; an object
 * serves one at a time, in passes over up to FILE_IO_PAGES dirty pages:
 *
 *	IDLE --> CLEANING --> WRITING --+--> next pages ... --> SYNCING --> request done
 *	          |                     |
 *	          |                     +-- a page is clean unless it was made writable meanwhile
 *	          +-- PG_WRITEBACK; no entry may write; all who map it have acknowledged
 *
 * A pass goes over the range once, upwards, so a program that writes all the time ends no msync from
 * returning. Who does not acknowledge in time is not waited for: the pages are written as they are and
 * stay dirty. What cannot be written stays dirty, too, and is tried again; with the last mapping it is lost,
 * and the log says so.
 *
 * Between requests there may be a hold (file_hold.c), while which nothing is written.
 *
 * A worker that dies leaves dirty pages dirty, whatever was under way: they are written again.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

/* ---- dirty ---------------------------------------------------------------------------------------- */

void file_count_dirty(struct object *o, struct page *page)
{
	struct file *f = o->file;

	if (!f->nr_dirty++)
		f->dirtied_at = clock_now();
	file_bits_dirty(f);
	phys_node_stat_add(file_node(o, page_to_pfn(o->virt->phys, page)), NR_FILE_DIRTY, 1);
}

void file_dirty(struct object *o, pfn_t pfn)
{
	struct page *page = pfn_to_page(o->virt->phys, pfn);

	if (!(page->flags & PG_DIRTY)) {
		truth_store(&page->flags, page->flags | PG_DIRTY);
		file_count_dirty(o, page);
		phys_node_stat_add(file_node(o, pfn), NR_DIRTIED, 1);
	} else if ((page->flags & (PG_WRITEBACK | PG_REDIRTY)) == PG_WRITEBACK) {
		truth_store(&page->flags, page->flags | PG_REDIRTY);
	}
}

static void end_writeback(struct object *o, struct page *page, uint32_t also)
{
	if (page->flags & PG_WRITEBACK)
		phys_node_stat_add(file_node(o, page_to_pfn(o->virt->phys, page)), NR_WRITEBACK,
				   -1);
	truth_store(&page->flags, page->flags & ~(PG_WRITEBACK | PG_REDIRTY | also));
}

void file_undirty(struct object *o, struct page *page)
{
	if (!(page->flags & PG_DIRTY))
		return;
	end_writeback(o, page, PG_DIRTY);
	o->file->nr_dirty--;
	phys_node_stat_add(file_node(o, page_to_pfn(o->virt->phys, page)), NR_FILE_DIRTY, -1);
}

/* ---- requests ---------------------------------------------------------------------------------------- */

static void note_error(struct file *f, int error)
{
	f->error = error;
	f->error_seq++;
}

void file_request_answer(struct file_request *r)
{
	struct io_wait *w = r->wait;
	struct file_request **at;

	if (!w)
		return;
	at = &w->requests;
	while (*at != r)
		at = &(*at)->next_of_wait;
	*at = r->next_of_wait;
	r->wait = NULL;
	io_wait_end(w, r->error);
}

void file_request_done(struct object *o, struct file_request *r)
{
	struct file *f = o->file;

	TAILQ_REMOVE(&f->requests, r, link);
	f->pass = (struct file_pass){0};
	if (r->error && !(r->wait && r->sync)) {
		note_error(f, r->error);
		log_warning("cannot write %.255s: %s", o->record->name, error_text(r->error));
	}
	file_request_answer(r);
	free(r);
}

void file_request(struct object *o, uint64_t first, uint64_t last, bool sync, struct io_wait *wait)
{
	struct file *f = o->file;
	struct file_request *r = mem_alloc(sizeof(*r));

	if (!r) {
		if (wait && !wait->error)
			wait->error = ARENA_E_NO_MEMORY;
		return;
	}
	*r = (struct file_request){.first = first, .last = last, .sync = sync, .wait = wait};
	if (wait) {
		r->next_of_wait = wait->requests;
		wait->requests = r;
		wait->pending++;
	}
	TAILQ_INSERT_TAIL(&f->requests, r, link);
	if (TAILQ_FIRST(&f->requests) == r)
		file_pass_step(o);
}

/* ---- a pass: which pages ------------------------------------------------------------------------------- */

/* The lowest chunk from `index` on; NULL. */
static struct chunk *next_chunk(struct object *o, uint64_t index)
{
	struct chunk *c, *next, *best = NULL;

	HASH_ITER(hh, o->chunks, c, next) {
		if (c->index >= index && (!best || c->index < best->index))
			best = c;
	}
	return best;
}

void file_gather(struct object *o, struct file_io *io, uint64_t from, uint64_t last, uint32_t flags)
{
	struct phys *p = o->virt->phys;
	struct chunk *c;

	for (c = next_chunk(o, from / ARENA_LEAF_PAGES); c && io->nr < FILE_IO_PAGES;
	     c = next_chunk(o, c->index + 1)) {
		uint64_t base = c->index * ARENA_LEAF_PAGES, i = from > base ? from - base : 0;

		if (base > last)
			return;
		for (; i < ARENA_LEAF_PAGES && base + i <= last && io->nr < FILE_IO_PAGES; i++) {
			pfn_t pfn = c->pages[i];

			if (pfn == PFN_NONE || (pfn_to_page(p, pfn)->flags & flags) != flags)
				continue;
			get_page(p, pfn);
			io->pgoff[io->nr] = (uint32_t)(base + i);
			io->pfn[io->nr++] = pfn;
		}
	}
}

static void mark_writeback(struct object *o, const struct file_io *io)
{
	for (unsigned i = 0; i < io->nr; i++) {
		struct page *page = pfn_to_page(o->virt->phys, io->pfn[i]);

		truth_store(&page->flags, page->flags | PG_WRITEBACK);
		phys_node_stat_add(file_node(o, io->pfn[i]), NR_WRITEBACK, 1);
	}
}

/* Take the right to write these pages from one VMA, and tell its client. */
static void clean_vma(struct vma *v, struct file_pass *pass)
{
	const struct file_io *io = pass->io;
	uint64_t addr, start = 0, end = 0;
	unsigned before;

	for (unsigned i = 0; i < io->nr; i++) {
		struct pte_ref ref;

		if (!file_entry(v, io->pgoff[i], io->pfn[i], &addr, &ref) ||
		    !(*ref.entry & ARENA_PTE_WRITE))
			continue;
		pte_switch(v->mm, &ref, *ref.entry & ~ARENA_PTE_WRITE);
		start = start ? start : addr;
		end = addr + ARENA_PAGE_SIZE;
	}
	if (start)
		flush_post(v->mm, ARENA_FLUSH_WRPROTECT, start, end);
	/* Also what took the right before, and is not acknowledged yet. */
	mm_flush_collect(v->mm);
	before = pass->wait.pending;
	flush_wait_add(&pass->wait, v->mm);
	if (pass->wait.pending == before && v->mm->acked < v->mm->posted && !v->mm->dying)
		pass->late = true;
	if (pass->wait.pending != before)
		mm_flush_want(v->mm, true);
}

/* ---- a pass: step by step -------------------------------------------------------------------------------- */

void file_pass_wait(struct object *o, enum pass_state state, uint64_t msecs)
{
	struct file *f = o->file;

	f->pass.state = state;
	f->pass.deadline = clock_now() + msecs * NSEC_PER_MSEC;
	LIST_INSERT_HEAD(&o->virt->files.waiting, f, waiting);
}

void file_pass_go_on(struct object *o)
{
	struct file_pass *pass = &o->file->pass;

	if (pass->state == PASS_CLEANING || pass->state == PASS_HELD ||
	    pass->state == PASS_SETTLING)
		LIST_REMOVE(o->file, waiting);
	pass->state = PASS_IDLE;
}

static void submit_pass(struct object *o)
{
	file_pass_go_on(o);
	o->file->pass.state = PASS_WRITING;
	file_io_submit(o->file->pass.io);
}

static void pass_cleaned(struct flush_wait *w)
{
	struct file_pass *pass = container_of(w, struct file_pass, wait);

	if (pass->state == PASS_CLEANING)
		submit_pass(pass->io->object);
}

static void clean_pages(struct object *o)
{
	struct file_pass *pass = &o->file->pass;
	struct vma *v;
	uint64_t msecs = state_tunable(o->virt->state, TUNABLE_FLUSH_DEADLINE_MSECS);

	/* An acknowledgement that is collected on the way must not end the wait before it is whole. */
	pass->state = PASS_IDLE;
	pass->late = false;
	pass->wait = (struct flush_wait){.done = pass_cleaned};
	mark_writeback(o, pass->io);
	LIST_FOREACH(v, &o->vmas, in_object)
		if (v->flags & VM_SHARED)
			clean_vma(v, pass);
	if (!pass->wait.pending) {
		submit_pass(o);
		return;
	}
	file_pass_wait(o, PASS_CLEANING, msecs);
}

/* All pages of the request are written, or as many as could be. */
static void pass_end(struct object *o, struct file_request *r)
{
	struct file *f = o->file;

	if (r->sync && !r->error && f->wfd >= 0) {
		f->pass.io = file_io_new(o, FILE_SYNC, f->wfd);
		if (f->pass.io) {
			f->pass.state = PASS_SYNCING;
			file_io_submit(f->pass.io);
			return;
		}
		r->error = -ENOMEM;
	}
	file_request_done(o, r);
}

/* The next pages of the first request, and so on to the last request. */
void file_pass_step(struct object *o)
{
	struct file *f = o->file;
	struct file_request *r;

	while ((r = TAILQ_FIRST(&f->requests)) && f->pass.state == PASS_IDLE) {
		struct file_io *io = NULL;

		if (r->hold) {
			file_hold_step(o, r);
			continue;
		}
		f->pass.next = MAX(f->pass.next, r->first);
		if (f->nr_dirty && !r->error && f->pass.next <= r->last) {
			if (f->wfd < 0)
				r->error = -EBADF;
			else if (!(io = file_io_new(o, FILE_WRITE, f->wfd)))
				r->error = -ENOMEM;
		}
		if (io)
			file_gather(o, io, f->pass.next, r->last, PG_DIRTY);
		if (io && io->nr) {
			f->pass.io = io;
			f->pass.next = io->pgoff[io->nr - 1] + UINT64_C(1);
			clean_pages(o);
			return;
		}
		if (io)
			file_io_free(io);
		pass_end(o, r);
	}
}

/* What became of a page that was to be written. */
static void page_written(struct object *o, pfn_t pfn, bool clean)
{
	struct page *page = pfn_to_page(o->virt->phys, pfn);

	/* The object may have let it go meanwhile. */
	if (page->mapping == o->id && page->flags & PG_WRITEBACK) {
		if (clean && !(page->flags & PG_REDIRTY)) {
			file_undirty(o, page);
			phys_node_stat_add(file_node(o, pfn), NR_WRITTEN, 1);
		} else {
			end_writeback(o, page, 0);
		}
	}
	put_page(o->virt->phys, pfn);
}

void file_write_done(struct file_io *io)
{
	struct object *o = io->object;
	struct file *f = o->file;
	struct file_request *r = TAILQ_FIRST(&f->requests);
	bool synced = io->kind == FILE_SYNC;

	for (unsigned i = 0; i < io->nr; i++)
		page_written(o, io->pfn[i], i < io->done && !f->pass.late);
	if (!synced)
		state_event(o->virt->state, EV_PGPGOUT,
			    (uint64_t)io->done << (ARENA_PAGE_SHIFT - 10));
	/* What is still dirty is so since now. */
	f->dirtied_at = clock_now();
	r->error = r->error ? r->error : io->error;
	/* The kernel tells this once, to who asks first: the others hear it of us. */
	if (synced && io->error)
		note_error(f, io->error);
	f->pass.io = NULL;
	f->pass.state = PASS_IDLE;
	file_io_free(io);
	if (synced)
		file_request_done(o, r);
	file_pass_step(o);
	object_release(o);
}

/* ---- the end, and time -------------------------------------------------------------------------------------- */

bool file_unused(struct object *o)
{
	struct file *f = o->file;

	if (f->nr_dirty && !f->last && f->wfd >= 0) {
		f->last = true;
		file_request(o, 0, UINT64_MAX, false, NULL);
	}
	if (!TAILQ_EMPTY(&f->requests) || !LIST_EMPTY(&f->ios))
		return false;
	if (f->nr_dirty)
		log_warning("%llu changed pages of %.255s are lost",
			    (unsigned long long)f->nr_dirty, o->record->name);
	return true;
}

static uint64_t interval(const struct virt *v, enum tunable t)
{
	return state_tunable(v->state, t) * (NSEC_PER_SEC / 100);
}

static void look_at_files(struct virt *v, uint64_t now)
{
	uint64_t expire = interval(v, TUNABLE_DIRTY_EXPIRE_CENTISECS);
	struct object *o;

	LIST_FOREACH(o, &v->objects, link) {
		if (o->kind != OBJECT_FILE)
			continue;
		if (o->nr_vmas)
			file_refresh_size(o, NULL);
		file_bits_look(o->file);
		if (o->file->nr_dirty && now >= o->file->dirtied_at + expire &&
		    TAILQ_EMPTY(&o->file->requests))
			file_request(o, 0, UINT64_MAX, false, NULL);
	}
}

/* Who has not acknowledged by now may still write: what is written stays dirty. */
static void end_late_waits(struct virt *v, uint64_t now)
{
	struct file *f, *next;

	LIST_FOREACH_SAFE(f, &v->files.waiting, waiting, next) {
		if (now < f->pass.deadline)
			continue;
		flush_wait_cancel(&f->pass.wait);
		if (f->pass.state != PASS_CLEANING) {
			file_hold_late(f->object);
			continue;
		}
		f->pass.late = true;
		submit_pass(f->object);
	}
}

void virt_files_tick(struct virt *v, uint64_t now)
{
	uint64_t every = interval(v, TUNABLE_DIRTY_WRITEBACK_CENTISECS);

	CONTROL_THREAD();
	frozen_tick(v, now);
	if (!v->files.nr_files)
		return;
	end_late_waits(v, now);
	if (!every || now < v->files.next_interval || now == UINT64_MAX)
		return;
	v->files.next_interval = now + every;
	look_at_files(v, now);
}

bool virt_has_deadlines(const struct virt *v)
{
	return v->files.nr_files || frozen_deadline(v) != UINT64_MAX;
}

uint64_t virt_files_deadline(const struct virt *v)
{
	uint64_t at = frozen_deadline(v);
	const struct file *f;

	if (!v->files.nr_files)
		return at;
	if (state_tunable(v->state, TUNABLE_DIRTY_WRITEBACK_CENTISECS))
		at = MIN(at, v->files.next_interval);
	LIST_FOREACH(f, &v->files.waiting, waiting)
		at = MIN(at, f->pass.deadline);
	return at;
}
