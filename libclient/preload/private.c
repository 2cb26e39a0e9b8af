/* SPDX-License-Identifier: MIT */
/*
 * private.c - memory of the library itself: never in the window, never jemalloc's.
 *
 *     private_base
 *     | page | page | page page page page | page | ...        PRIVATE_SIZE, from the kernel
 *       2^6    2^4    2^14                  2^6               size class of each, in `class_of`
 *
 * A block of up to a page lies in a page of such blocks, a larger one is a run of pages. Freed blocks
 * are kept for their class. There are few: an arena's own state, packets, threads' bookkeeping.
 *
 * Everything is under `lock`, with all signals blocked: a handler may fault, and the library then is
 * entered again. fork() takes it, because the child is another thread than the one that may have it.
 */
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "libclient/lock.h"
#include "libclient/preload/preload.h"
#include "libclient/preload/raw.h"

#define PAGE_SHIFT 12
#define MIN_CLASS 4u
#define MAX_CLASS 24u
#define NR_PAGES (PRIVATE_SIZE >> PAGE_SHIFT)

struct block {
	struct block *next;
};

uintptr_t private_base;
static struct small_lock lock;
static struct block *free_blocks[MAX_CLASS + 1];
static uint8_t class_of[NR_PAGES]; /* 0: not used yet */
static size_t nr_pages;            /* used, from the start */

static unsigned size_class(size_t size)
{
	unsigned class = MIN_CLASS;

	while (((size_t)1 << class) < size)
		class ++;
	return class;
}

static bool have_region(void)
{
	int64_t p;

	if (private_base)
		return true;
	p = raw6(SYS_mmap, 0, PRIVATE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, (uint64_t)-1, 0);
	if (p < 0 && p > -4096)
		return false;
	private_base = (uintptr_t)p;
	return true;
}

/* Pages for at least one block of the class, on its list. */
static bool refill(unsigned class)
{
	size_t pages = class > PAGE_SHIFT ? (size_t)1 << (class - PAGE_SHIFT) : 1;
	size_t size = (size_t)1 << class;
	char *at;

	if (!have_region() || nr_pages + pages > NR_PAGES)
		return false;
	at = (char *)private_base + (nr_pages << PAGE_SHIFT);
	for (size_t i = 0; i < pages; i++)
		class_of[nr_pages + i] = (uint8_t) class;
	nr_pages += pages;
	for (size_t done = 0; done < pages << PAGE_SHIFT; done += size) {
		struct block *b = (struct block *)(void *)(at + done);

		b->next = free_blocks[class];
		free_blocks[class] = b;
	}
	return true;
}

void *private_alloc(size_t size)
{
	struct block *b = NULL;
	unsigned class;
	uint64_t mask;

	if (size > (size_t)1 << MAX_CLASS)
		return NULL;
	class = size_class(size);
	mask = signals_block_all();
	small_lock_acquire(&lock);
	if (free_blocks[class] || refill(class)) {
		b = free_blocks[class];
		free_blocks[class] = b->next;
	}
	small_lock_release(&lock);
	signals_restore(mask);
	return b ? memset(b, 0, (size_t)1 << class) : NULL;
}

static unsigned class_at(const void *p)
{
	return class_of[((uintptr_t)p - private_base) >> PAGE_SHIFT];
}

void private_free(void *p)
{
	struct block *b = p;
	uint64_t mask;

	if (!p)
		return;
	mask = signals_block_all();
	small_lock_acquire(&lock);
	b->next = free_blocks[class_at(p)];
	free_blocks[class_at(p)] = b;
	small_lock_release(&lock);
	signals_restore(mask);
}

size_t private_usable_size(const void *p)
{
	return (size_t)1 << class_at(p);
}

/* Signals are blocked already, until after. */
void private_before_fork(void)
{
	small_lock_acquire(&lock);
}

/* In the parent others may wait for it, and must be woken. */
void private_after_fork(bool child)
{
	if (child)
		lock = (struct small_lock){0};
	else
		small_lock_release(&lock);
}
