/* SPDX-License-Identifier: MIT */
/*
 * handlers_file.c - clients that read and write mapped files by system calls, too, and what has to be in the files
 * before a mapping is replaced.
 */
#include "daemon/service/internal.h"

#include <errno.h>

static struct vm_file_range range_of(uint64_t dev, uint64_t ino, uint64_t offset, uint64_t length)
{
	return (struct vm_file_range){.dev = dev, .ino = ino, .offset = offset, .length = length};
}

/* r: what the operation answered that was handed l->io. */
static int answer_io(struct later *l, int r)
{
	if (!r && l->io.pending)
		return call_later_io(l);
	if (!r)
		r = l->io.error;
	later_drop(l);
	return r;
}

int handle_file_sync(struct call *call)
{
	const Arena__FileSync *m = call->request->file_sync;
	const struct vm_file_range range = range_of(m->dev, m->ino, m->offset, m->length);
	struct later *l = later_create(call);

	if (!l)
		return -ENOMEM;
	if (!m->all)
		return answer_io(l, vm_file_sync(call->peer->mm, &range, &l->io));
	vm_write_back_all(call->peer->mm, &l->io);
	return answer_io(l, 0);
}

int handle_file_hold(struct call *call)
{
	const Arena__FileWrite *m = call->request->file_hold;
	const struct vm_file_range range = range_of(m->dev, m->ino, m->offset, m->length);
	struct later *l = later_create(call);

	if (!l)
		return -ENOMEM;
	return answer_io(l, vm_file_hold(call->peer->mm, &range, m->thread, &l->io));
}

int handle_file_release(struct call *call)
{
	const Arena__FileWrite *m = call->request->file_release;
	const struct vm_file_range range = range_of(m->dev, m->ino, m->offset, m->length);
	struct later *l = later_create(call);

	if (!l)
		return -ENOMEM;
	return answer_io(l, vm_file_release(call->peer->mm, &range, m->thread, &l->io));
}

bool call_writes_first(const struct call *call)
{
	const struct service *s = call->peer->service;

	return virt_has_files(s->machine->virt) && !s->redoing;
}

int call_write_back(struct call *call, const struct file_piece *pieces, unsigned nr)
{
	struct later *l = later_create(call);

	if (!l)
		return -ENOMEM;
	for (unsigned i = 0; i < nr; i++)
		if (pieces[i].len)
			vm_write_back(call->peer->mm, pieces[i].addr, pieces[i].len, &l->io);
	if (l->io.pending)
		return call_redo_io(l);
	later_drop(l);
	return 0;
}
