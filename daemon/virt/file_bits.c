/* SPDX-License-Identifier: MIT */
/*
 * file_bits.c - how clients know which files are cached in their domain, and which have dirty pages.
 *
 * Each address space's header has a bit for either, by device and inode (arena_file_bit()), so that who reads and writes
 * other files has to ask nobody. The bits are hints: one that is set without need costs a call. They are set before the
 * thing itself, and cleared late: that a file has no dirty pages any more is found out by the interval.
 *
 * Invariant: the header of every mm has the bit of each file of its domain.
 */
#include "daemon/virt/file.h"

static void set_bit(uint64_t *words, unsigned bit, bool on)
{
	uint64_t mask = UINT64_C(1) << bit % 64;

	if (on)
		__atomic_fetch_or(&words[bit / 64], mask, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(&words[bit / 64], ~mask, __ATOMIC_SEQ_CST);
}

static void tell(const struct file *f, bool dirty, bool on)
{
	const struct object *o = f->object;
	struct mm *mm;

	LIST_FOREACH(mm, &o->virt->mms, link)
		if (mm->domain == o->domain && mm->header)
			set_bit(dirty ? mm->header->files_dirty : mm->header->files_cached, f->bit,
				on);
}

/* Does another file need the bit? */
static bool is_shared(const struct file *f, bool dirty)
{
	const struct object *o = f->object;
	const struct file *other;

	LIST_FOREACH(other, &o->virt->files.by_bit[f->bit], same_bit)
		if (other != f && other->object->domain == o->domain &&
		    (!dirty || other->told_dirty))
			return true;
	return false;
}

void file_bits_enter(struct file *f)
{
	f->bit = arena_file_bit(f->key[1], f->key[2]);
	LIST_INSERT_HEAD(&f->object->virt->files.by_bit[f->bit], f, same_bit);
	tell(f, false, true);
}

static void not_dirty(struct file *f)
{
	f->told_dirty = false;
	if (!is_shared(f, true))
		tell(f, true, false);
}

void file_bits_leave(struct file *f)
{
	if (f->told_dirty)
		not_dirty(f);
	if (!is_shared(f, false))
		tell(f, false, false);
	LIST_REMOVE(f, same_bit);
}

void file_bits_dirty(struct file *f)
{
	if (f->told_dirty)
		return;
	f->told_dirty = true;
	tell(f, true, true);
}

void file_bits_look(struct file *f)
{
	if (f->told_dirty && !f->nr_dirty)
		not_dirty(f);
}

void file_bits_tell(struct mm *mm)
{
	const struct virt *v = mm->virt;
	const struct object *o;

	for (unsigned i = 0; i < ARENA_FILE_WORDS; i++) {
		store_relaxed(&mm->header->files_cached[i], UINT64_C(0));
		store_relaxed(&mm->header->files_dirty[i], UINT64_C(0));
	}
	LIST_FOREACH(o, &v->objects, link) {
		if (!o->file || o->domain != mm->domain)
			continue;
		set_bit(mm->header->files_cached, o->file->bit, true);
		if (o->file->told_dirty)
			set_bit(mm->header->files_dirty, o->file->bit, true);
	}
}
