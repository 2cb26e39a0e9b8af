/* SPDX-License-Identifier: MIT */
/*
 * file_io.c - reading and writing files, in threads of their own.
 *
 *	control thread                     a thread
 *	file_io_submit() ---- queue ---->  file_io_run(): bytes of the frames it was given
 *	virt_files_collect() <-- done ---  and what became of it
 *
 * A file system may take for ever (a server that does not answer, or a hostile one in user space), so
 * domains are spread over a few pairs of threads, one of which reads and one of which writes: who waits
 * for his own file's disk keeps nobody else's thread.
 *
 * A descriptor's flags belong to the client, who can change them at any time: what must not be there
 * (O_APPEND, O_DIRECT) is looked for before each use, and gone round by opening the file again.
 *
 * Before virt_files_start() nothing is run but by virt_files_collect() itself: recovery queues
 * what is to be written, and tests see one thing after the other.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/virt/file.h"
#include "daemon/virt/frozen.h"

#define FILE_PAIRS 4u

static const struct file_ops real_ops = {
	.read = os_file_read,
	.write = os_file_write,
	.sync = os_file_sync,
	.size = os_file_size,
};

/* ---- the threads' part ------------------------------------------------------------------------- */

static char *frame_bytes(const struct file_io *io, unsigned i)
{
	return io->map + ((uint64_t)io->pfn[i] << ARENA_PAGE_SHIFT);
}

/* From page i on: pages one after the other both in the file and in memory. */
static unsigned run_length(const struct file_io *io, unsigned i)
{
	unsigned n = 1;

	while (i + n < io->nr && io->pfn[i + n] == io->pfn[i] + n &&
	       io->pgoff[i + n] == io->pgoff[i] + n)
		n++;
	return n;
}

/* What lies behind the end of the file reads as zeros. */
static void run_read(struct file_io *io)
{
	while (io->done < io->nr && !io->error) {
		unsigned n = run_length(io, io->done);
		size_t len = (size_t)n << ARENA_PAGE_SHIFT, got = 0;
		char *to = frame_bytes(io, io->done);
		uint64_t at = (uint64_t)io->pgoff[io->done] << ARENA_PAGE_SHIFT;
		ssize_t r = 1;

		while (got < len && r > 0) {
			r = io->ops->read(io->fd, to + got, len - got, at + got);
			got += r > 0 ? (size_t)r : 0;
		}
		if (r < 0) {
			io->error = (int)r;
			io->done += (unsigned)(got >> ARENA_PAGE_SHIFT);
			return;
		}
		memset(to + got, 0, len - got);
		io->done += n;
	}
}

/* The file is never made longer: what lies behind its end is not written. */
static void run_write(struct file_io *io)
{
	while (io->done < io->nr && !io->error) {
		unsigned n = run_length(io, io->done);
		size_t len = (size_t)n << ARENA_PAGE_SHIFT, put = 0;
		const char *from = frame_bytes(io, io->done);
		uint64_t at = (uint64_t)io->pgoff[io->done] << ARENA_PAGE_SHIFT, size;

		io->error = io->ops->size(io->fd, &size);
		if (io->error)
			return;
		len = at >= size ? 0 : (size_t)MIN((uint64_t)len, size - at);
		while (put < len) {
			ssize_t r = io->ops->write(io->fd, from + put, len - put, at + put);

			if (r <= 0) {
				io->error = r ? (int)r : -EIO;
				io->done += (unsigned)(put >> ARENA_PAGE_SHIFT);
				return;
			}
			put += (size_t)r;
		}
		io->done += n;
	}
}

/* Bytes of pages that clients have mapped and go on using, as write(2) changes them under who maps a file. */
static void run_refresh(struct file_io *io)
{
	while (io->done < io->nr && !io->error) {
		unsigned n = run_length(io, io->done);
		uint64_t base = (uint64_t)io->pgoff[io->done] << ARENA_PAGE_SHIFT;
		uint64_t at = MAX(base, io->from);
		uint64_t end = MIN(base + ((uint64_t)n << ARENA_PAGE_SHIFT), io->to);
		char *page = frame_bytes(io, io->done);
		ssize_t r = 1;

		while (at < end && r > 0) {
			r = io->ops->read(io->fd, page + (at - base), end - at, at);
			at += r > 0 ? (uint64_t)r : 0;
		}
		/* Behind the end of the file there is nothing to have changed. */
		if (r < 0) {
			io->error = (int)r;
			return;
		}
		io->done += n;
	}
}

static void file_io_run(struct work *w)
{
	struct file_io *io = container_of(w, struct file_io, work);

	switch (io->kind) {
	case FILE_READ:
		run_read(io);
		break;
	case FILE_WRITE:
		run_write(io);
		break;
	case FILE_SYNC:
		io->error = io->ops->sync(io->fd);
		break;
	case FILE_REFRESH:
		run_refresh(io);
		break;
	case FILE_CLOSE:
		close(io->fd);
		break;
	}
}

/* ---- the control thread's ------------------------------------------------------------------------ */

static const char *const names[FILE_PAIRS * 2] = {"kread/0", "kwrite/0", "kread/1", "kwrite/1",
						  "kread/2", "kwrite/2", "kread/3", "kwrite/3"};
static_assert(FILE_QUEUES == FILE_PAIRS * 2, "two queues a pair");

void files_init(struct virt *v)
{
	static const struct phys_pressure_ops pressure = {.relieve = files_relieve};

	phys_set_pressure_ops(v->phys, &pressure, v);
	v->files.ops = &real_ops;
	TAILQ_INIT(&v->files.held);
	LIST_INIT(&v->files.waiting);
	for (unsigned i = 0; i < ARENA_FILE_BITS; i++)
		LIST_INIT(&v->files.by_bit[i]);
}

void virt_set_file_ops(struct virt *v, const struct file_ops *ops)
{
	v->files.ops = ops ? ops : &real_ops;
}

struct file_io *file_io_new(struct object *o, enum file_io_kind kind, int fd)
{
	struct file_io *io = mem_alloc(sizeof(*io));

	if (!io)
		return NULL;
	io->object = o;
	io->kind = kind;
	io->fd = fd;
	LIST_INIT(&io->waiters);
	if (o) {
		io->ops = o->virt->files.ops;
		io->map = domain_address(o->domain, 0);
		LIST_INSERT_HEAD(&o->file->ios, io, in_file);
	}
	return io;
}

void file_io_free(struct file_io *io)
{
	if (io->object)
		LIST_REMOVE(io, in_file);
	free(io);
}

/* NULL: no thread is to be had, and it is run when somebody collects. */
static struct workqueue *queue_of(struct virt *v, const struct file_io *io)
{
	unsigned domain = io->object ? domain_id(io->object->domain) : 0;
	bool writes = io->kind != FILE_READ && io->kind != FILE_REFRESH;
	unsigned n = domain % FILE_PAIRS * 2 + writes;
	const struct workqueue_params params = {
		.name = names[n], .waited_for = true, .eventfd = v->files.eventfd};

	if (!v->files.threads)
		return NULL;
	if (!v->files.queue[n] && workqueue_create_for(&params, &v->files.queue[n])) {
		log_warning("no thread to read and write files with");
		return NULL;
	}
	return v->files.queue[n];
}

static void submit(struct virt *v, struct file_io *io)
{
	struct workqueue *q = queue_of(v, io);

	io->work.run = file_io_run;
	v->files.nr_ios++;
	if (q)
		workqueue_queue(q, &io->work);
	else
		TAILQ_INSERT_TAIL(&v->files.held, io, held);
}

void file_io_submit(struct file_io *io)
{
	submit(io->object->virt, io);
}

void file_close(struct virt *v, int fd)
{
	struct file_io *io;

	if (fd < 0)
		return;
	io = file_io_new(NULL, FILE_CLOSE, fd);
	if (!io) {
		close(fd);
		return;
	}
	submit(v, io);
}

void virt_file_close(struct virt *v, int fd)
{
	CONTROL_THREAD();
	file_close(v, fd);
}

static void complete(struct virt *v, struct file_io *io)
{
	v->files.nr_ios--;
	if (v->files.wanted == io)
		v->files.wanted = NULL;
	switch (io->kind) {
	case FILE_READ:
		file_read_done(io);
		break;
	case FILE_WRITE:
	case FILE_SYNC:
		file_write_done(io);
		break;
	case FILE_REFRESH:
		file_refresh_done(io);
		break;
	case FILE_CLOSE:
		file_io_free(io);
		break;
	}
}

static bool collect_held(struct virt *v)
{
	struct file_io *io;
	bool any = false;

	while ((io = TAILQ_FIRST(&v->files.held))) {
		TAILQ_REMOVE(&v->files.held, io, held);
		file_io_run(&io->work);
		complete(v, io);
		any = true;
	}
	return any;
}

bool virt_files_collect(struct virt *v)
{
	bool any = false;

	CONTROL_THREAD();
	if (!v->files.nr_ios)
		return false;
	any = collect_held(v);
	for (unsigned i = 0; i < FILE_QUEUES; i++) {
		struct work *w, *next;

		if (!v->files.queue[i])
			continue;
		for (w = workqueue_completed(v->files.queue[i]); w; w = next) {
			next = w->next;
			complete(v, container_of(w, struct file_io, work));
			any = true;
		}
	}
	return any;
}

int virt_files_start(struct virt *v)
{
	struct file_io *io;
	int fd;

	CONTROL_THREAD();
	fd = os_eventfd();
	if (fd < 0)
		return fd;
	v->files.eventfd = fd;
	v->files.threads = true;
	while ((io = TAILQ_FIRST(&v->files.held))) {
		TAILQ_REMOVE(&v->files.held, io, held);
		v->files.nr_ios--;
		submit(v, io);
	}
	return 0;
}

int virt_files_eventfd(const struct virt *v)
{
	return v->files.threads ? v->files.eventfd : -1;
}

bool virt_files_busy(const struct virt *v)
{
	return v->files.nr_ios;
}

bool virt_has_files(const struct virt *v)
{
	return v->files.nr_files;
}

/* Wait until what is under way is done. */
static void wait_for_io(struct virt *v)
{
	for (unsigned i = 0; i < FILE_QUEUES; i++)
		if (v->files.queue[i])
			workqueue_flush(v->files.queue[i]);
	virt_files_collect(v);
}

void virt_files_write_all(struct virt *v)
{
	struct object *o;

	CONTROL_THREAD();
	LIST_FOREACH(o, &v->objects, link)
		if (o->kind == OBJECT_FILE && o->file->nr_dirty)
			file_request(o, 0, UINT64_MAX, false, NULL);
	for (;;) {
		bool left = false;

		/* Who has not acknowledged is not waited for. */
		virt_files_tick(v, UINT64_MAX);
		wait_for_io(v);
		LIST_FOREACH(o, &v->objects, link)
			left |= o->kind == OBJECT_FILE && !TAILQ_EMPTY(&o->file->requests);
		if (!left)
			return;
	}
}

void virt_files_stop(struct virt *v)
{
	virt_files_write_all(v);
	while (v->files.nr_ios)
		wait_for_io(v);
	for (unsigned i = 0; i < FILE_QUEUES; i++)
		v->files.queue[i] = workqueue_destroy(v->files.queue[i]);
	if (v->files.threads)
		close(v->files.eventfd);
	v->files.threads = false;
}

/* ---- waiting --------------------------------------------------------------------------------------- */

void virt_io_wait(struct virt *v, struct io_wait *w)
{
	struct file_io *io = v->files.wanted;

	v->files.wanted = NULL;
	w->pending = 1;
	if (!io) {
		frozen_wait(v, w);
		return;
	}
	w->io = io;
	w->object = io->object->id;
	w->pgoff = v->files.wanted_page;
	LIST_INSERT_HEAD(&io->waiters, w, in_io);
}

void io_wait_end(struct io_wait *w, int error)
{
	if (error && !w->error)
		w->error = error;
	if (!--w->pending && w->done)
		w->done(w);
}

void io_wait_cancel(struct io_wait *w)
{
	struct file_request *r;

	if (w->io)
		LIST_REMOVE(w, in_io);
	w->io = NULL;
	for (r = w->requests; r; r = r->next_of_wait)
		r->wait = NULL;
	w->requests = NULL;
	w->pending = 0;
	frozen_wait_cancel(w);
}

void virt_io_retry(struct virt *v, const struct io_wait *w)
{
	v->files.retry = w && w->error ? w : NULL;
	v->frozen.retry = w;
}
