/* SPDX-License-Identifier: MIT */
/*
 * file_hold.c - clients that read and write a mapped file by system calls, too.
 *
 * The cache is beside the kernel's. What is dirty here is not in the file yet, and what is written to the file is not
 * here. So a client that reads asks for what is dirty to be written first (vm_file_sync()), and one that writes
 * does this:
 *
 *	vm_file_hold() ------- queued as a request of the object; granted: nothing of it is being written, and nothing
 *	                       will be, so no old page can go over what is about to be written
 *	write(2), ftruncate(2), ...
 *	vm_file_release() ---- the file's size is looked at, then the bytes that were written are read into the pages that
 *	                       are cached, in place: byte by byte, so that what else is dirty in a page stays
 *
 * Faults do not wait for a hold, for the client may be writing from a mapping of the same file. A page whose reading
 * began before the release may be of before or after: it is read once more (`stale`).
 *
 * Who may not write for another one's holding waits in the queue like everybody else: writers of one file come one
 * after the other, as in Linux. A holder that says nothing any more, or is dead, has changed what it said it would.
 *
 * Where it is not known what was written (a holder that a former worker knew is dead; streams, whose system calls
 * are not seen), clean pages are dropped. Dirty ones cannot be: then what was stored in a page goes before
 * what was written to it.
 *
 * Truth: the record's `writer`, from the grant until all is read, so that a worker that takes over writes nothing
 * meanwhile, either. A release without a hold (its worker's answer came too late, the deadline was passed, or the file was not
 * cached yet when it began) reads what was written all the same.
 */
#include "base/log.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

/* So long may a write(2) take, or a holder be stopped. */
#define HOLD_MSECS 30000u

static void refresh_begin(struct object *o, struct file_request *r);

static uint64_t writer_of(const struct file_request *r)
{
	return (uint64_t)r->mm << 32 | r->thread;
}

static struct file_request *find_hold(const struct object *o, uint32_t mm, uint32_t thread)
{
	struct file_request *r;

	TAILQ_FOREACH(r, &o->file->requests, link)
		if (r->hold && r->mm == mm && r->thread == thread)
			return r;
	return NULL;
}

static struct file_request *new_hold(struct object *o, uint32_t mm, uint32_t thread)
{
	struct file_request *r = mem_alloc(sizeof(*r));

	if (!r)
		return NULL;
	*r = (struct file_request){.hold = true, .mm = mm, .thread = thread};
	o->virt->files.nr_holds++;
	TAILQ_INSERT_TAIL(&o->file->requests, r, link);
	return r;
}

static void wait_for(struct file_request *r, struct io_wait *wait)
{
	r->wait = wait;
	r->next_of_wait = wait->requests;
	wait->requests = r;
	wait->pending++;
}

/* ---- granted, and over -------------------------------------------------------------------- */

static void hurry_flushes(struct object *o)
{
	const struct vma *v;

	LIST_FOREACH(v, &o->vmas, in_object)
		if (mm_flush_pending(v->mm))
			mm_flush_want(v->mm, true);
}

static void grant(struct object *o, struct file_request *r)
{
	const uint64_t size = o->size;

	/* Somebody may have cut it off just now, whose cut the next size would hide. */
	file_refresh_size(o, NULL);
	r->cut = o->size < size;
	if (r->cut)
		hurry_flushes(o);
	truth_store(&o->record->writer, writer_of(r));
	r->granted = true;
	file_pass_wait(o, PASS_HELD, HOLD_MSECS);
	file_request_answer(r);
}

static void end_hold(struct object *o, struct file_request *r)
{
	file_pass_go_on(o);
	if (r->granted)
		truth_store(&o->record->writer, UINT64_C(0));
	o->virt->files.nr_holds--;
	file_request_done(o, r);
}

void file_hold_step(struct object *o, struct file_request *r)
{
	if (r->released)
		refresh_begin(o, r);
	else
		grant(o, r);
}

/* ---- what was written --------------------------------------------------------------------------- */

static uint64_t last_page(const struct file_request *r)
{
	return MIN((r->to - 1) >> ARENA_PAGE_SHIFT, (uint64_t)UINT32_MAX);
}

/* It cannot be read into what is there: who wants it reads it anew. */
static void drop_instead(struct object *o, const struct file_request *r, uint64_t first)
{
	log_warning("cannot read again what was written to %.247s", o->record->path);
	file_invalidate(o, first, last_page(r));
}

/* What was written is not what snapshots of the file saw. False: no memory. */
static bool leave_to_snapshots(struct object *o, const struct file_request *r)
{
	uint64_t last = MIN(last_page(r) + 1, file_pages(o));

	return !frozen_vacate(o, r->from >> ARENA_PAGE_SHIFT, last, false);
}

/* The next pages of it that are cached. `later`: only where the hold is not over yet. */
static void refresh_next(struct object *o, struct file_request *r, bool later)
{
	struct file_pass *pass = &o->file->pass;
	struct file_io *io = NULL;
	bool any = !r->unknown && r->from < r->to && pass->next <= last_page(r) && o->file->fd >= 0;

	if (any && pass->next == r->from >> ARENA_PAGE_SHIFT && !leave_to_snapshots(o, r)) {
		drop_instead(o, r, pass->next);
		any = false;
	}
	if (any || later) {
		io = file_io_new(o, FILE_REFRESH, o->file->fd);
		if (!io && any)
			drop_instead(o, r, pass->next);
	}
	if (io && any)
		file_gather(o, io, pass->next, last_page(r), 0);
	if (!io || (!io->nr && !later)) {
		if (io)
			file_io_free(io);
		end_hold(o, r);
		return;
	}
	io->from = r->from;
	io->to = r->to;
	pass->next = io->nr ? io->pgoff[io->nr - 1] + UINT64_C(1) : UINT64_MAX;
	pass->io = io;
	pass->state = PASS_REFRESHING;
	file_io_submit(io);
}

void file_refresh_done(struct file_io *io)
{
	struct object *o = io->object;
	struct file_request *r = TAILQ_FIRST(&o->file->requests);
	struct file_pass *pass = &o->file->pass;

	for (unsigned i = 0; i < io->nr; i++)
		put_page(o->virt->phys, io->pfn[i]);
	if (io->error) {
		drop_instead(o, r, io->pgoff[io->done]);
		pass->next = UINT64_MAX;
	}
	pass->io = NULL;
	pass->state = PASS_IDLE;
	file_io_free(io);
	refresh_next(o, r, false);
	file_pass_step(o);
	object_release(o);
}

/* Called in the middle of other things, so no more than that is done here. */
static void settled(struct flush_wait *w)
{
	struct file_pass *pass = container_of(w, struct file_pass, wait);
	struct object *o = container_of(pass, struct file, pass)->object;

	if (pass->state != PASS_SETTLING)
		return;
	file_pass_go_on(o);
	refresh_next(o, TAILQ_FIRST(&o->file->requests), true);
}

static void spoil_reads(struct object *o)
{
	struct file_io *io;

	LIST_FOREACH(io, &o->file->ios, in_file)
		if (io->kind == FILE_READ)
			io->stale = true;
}

static void wait_for_flushes(struct object *o)
{
	struct vma *v;

	LIST_FOREACH(v, &o->vmas, in_object)
		flush_wait_add(&o->file->pass.wait, v->mm);
}

static void refresh_begin(struct object *o, struct file_request *r)
{
	struct file_pass *pass = &o->file->pass;
	uint64_t msecs = state_tunable(o->virt->state, TUNABLE_FLUSH_DEADLINE_MSECS);

	file_pass_go_on(o);
	pass->wait = (struct flush_wait){.done = settled};
	pass->next = r->from >> ARENA_PAGE_SHIFT;
	spoil_reads(o);
	/* What was cut off now is so for everybody when the call returns. */
	if (file_refresh_size(o, &pass->wait))
		log_warning("no memory to cut off the end of %.247s", o->record->path);
	if (r->unknown && file_invalidate(o, 0, UINT32_MAX))
		r->cut = true;
	if (r->cut)
		wait_for_flushes(o);
	if (!pass->wait.pending) {
		refresh_next(o, r, false);
		return;
	}
	file_pass_wait(o, PASS_SETTLING, msecs);
	hurry_flushes(o);
}

/* ---- who says nothing any more ---------------------------------------------------------------------- */

static void end_for_him(struct object *o, struct file_request *r)
{
	r->mm = r->thread = 0;
	r->released = true;
	refresh_begin(o, r);
}

void file_hold_late(struct object *o)
{
	struct file_request *r = TAILQ_FIRST(&o->file->requests);

	if (o->file->pass.state == PASS_SETTLING) {
		file_pass_go_on(o);
		refresh_next(o, r, true);
		return;
	}
	end_for_him(o, r);
	file_pass_step(o);
	object_release(o);
}

static void end_holds_of(struct object *o, uint32_t mm_id)
{
	struct file_request *r, *next;

	TAILQ_FOREACH_SAFE(r, &o->file->requests, link, next) {
		if (!r->hold || r->mm != mm_id || r->released)
			continue;
		if (r->granted) {
			end_for_him(o, r);
			continue;
		}
		TAILQ_REMOVE(&o->file->requests, r, link);
		file_request_answer(r);
		o->virt->files.nr_holds--;
		free(r);
	}
	file_pass_step(o);
	object_release(o);
}

void files_end_holds(struct virt *v, uint32_t mm_id)
{
	struct object *o, *next;

	if (!v->files.nr_holds)
		return;
	LIST_FOREACH_SAFE(o, &v->objects, link, next)
		if (o->file)
			end_holds_of(o, mm_id);
}

void file_hold_recover(struct object *o)
{
	uint64_t writer = o->record->writer;
	struct file_request *r = new_hold(o, (uint32_t)(writer >> 32), (uint32_t)writer);
	const struct mm *mm;

	if (!r) {
		truth_store(&o->record->writer, UINT64_C(0));
		return;
	}
	LIST_FOREACH(mm, &o->virt->mms, link)
		if (mm->id == r->mm)
			break;
	r->granted = r->unknown = true;
	if (mm)
		file_pass_wait(o, PASS_HELD, HOLD_MSECS);
	else
		end_for_him(o, r);
}

/* ---- calls -------------------------------------------------------------------------------------------- */

static struct object *file_of(const struct mm *mm, const struct vm_file_range *range)
{
	const uint64_t key[3] = {domain_id(mm->domain), range->dev, range->ino};

	return file_find(mm->virt, key);
}

/* False: it is empty. *end: the byte behind it. */
static bool range_end(const struct vm_file_range *range, uint64_t *end)
{
	if (__builtin_add_overflow(range->offset, range->length, end))
		*end = UINT64_MAX;
	return range->length;
}

static void set_range(struct file_request *r, const struct vm_file_range *range)
{
	r->from = range->offset;
	range_end(range, &r->to);
	r->unknown = range->length == UINT64_MAX;
}

/* A page that is being written for another request is dirty until it is. */
static bool any_dirty(struct object *o, uint64_t first, uint64_t last)
{
	struct chunk *c, *next;

	if (!o->file->nr_dirty)
		return false;
	HASH_ITER(hh, o->chunks, c, next) {
		uint64_t base = c->index * ARENA_LEAF_PAGES;

		for (unsigned i = 0; i < ARENA_LEAF_PAGES; i++)
			if (base + i >= first && base + i <= last && c->pages[i] != PFN_NONE &&
			    pfn_to_page(o->virt->phys, c->pages[i])->flags & PG_DIRTY)
				return true;
	}
	return false;
}

int vm_file_sync(struct mm *mm, const struct vm_file_range *range, struct io_wait *wait)
{
	struct object *o = file_of(mm, range);
	uint64_t end, first = range->offset >> ARENA_PAGE_SHIFT, last;

	CONTROL_THREAD();
	if (!o || !range_end(range, &end))
		return 0;
	last = (end - 1) >> ARENA_PAGE_SHIFT;
	if (!any_dirty(o, first, last))
		return 0;
	wait->pending++;
	file_request(o, first, last, false, wait);
	wait->pending--;
	return wait->pending ? 0 : wait->error;
}

/* The thread's one, made if it has none, which nobody waits for. */
static int hold_for_wait(struct object *o, const struct mm *mm, uint32_t thread,
			 struct file_request **r)
{
	if (!*r)
		*r = new_hold(o, mm->id, thread);
	if (!*r)
		return ARENA_E_NO_MEMORY;
	return (*r)->wait ? ARENA_E_BUSY : 0;
}

int vm_file_hold(struct mm *mm, const struct vm_file_range *range, uint32_t thread,
		 struct io_wait *wait)
{
	struct object *o = file_of(mm, range);
	struct file_request *r;
	int e;

	CONTROL_THREAD();
	if (!o)
		return ARENA_E_NOT_FOUND;
	r = find_hold(o, mm->id, thread);
	/* Asked again after a worker's death, or by another connection. */
	if (r && r->granted)
		return 0;
	e = hold_for_wait(o, mm, thread, &r);
	if (e)
		return e;
	set_range(r, range);
	wait->pending++;
	wait_for(r, wait);
	file_pass_step(o);
	wait->pending--;
	return 0;
}

int vm_file_release(struct mm *mm, const struct vm_file_range *range, uint32_t thread,
		    struct io_wait *wait)
{
	struct object *o = file_of(mm, range);
	struct file_request *r;
	int e;

	CONTROL_THREAD();
	if (!o)
		return 0;
	r = find_hold(o, mm->id, thread);
	e = hold_for_wait(o, mm, thread, &r);
	if (e)
		return e;
	wait->pending++;
	wait_for(r, wait);
	if (!r->released) {
		r->released = true;
		set_range(r, range);
		if (o->file->pass.state == PASS_HELD && TAILQ_FIRST(&o->file->requests) == r)
			refresh_begin(o, r);
	}
	file_pass_step(o);
	object_release(o);
	wait->pending--;
	return 0;
}
