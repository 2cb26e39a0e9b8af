/* SPDX-License-Identifier: MIT */
/*
 * trap_userfaultfd.h - what the parts of the userfaultfd trap share.
 *
 *   trap_userfaultfd.c  what is mapped how; the drawing is there
 *   trap_serve.c        the thread that answers accesses which the kernel holds
 *   trap_ahead.c        what that thread does beside
 *   trap_program.c      what threads of the program do themselves
 */
#ifndef LIBCLIENT_TRAP_USERFAULTFD_H
#define LIBCLIENT_TRAP_USERFAULTFD_H

#include "libclient/internal.h"

#define USERFAULT_MAX_TRIES 1000

static inline void *pointer(uint64_t addr)
{
	return (void *)(uintptr_t)addr;
}

static inline uint64_t page_of(const struct tlb *t, uint64_t addr)
{
	return (addr - t->base) >> ARENA_PAGE_SHIFT;
}

/* ---- trap_userfaultfd.c; all under the tlb lock ---- */

/* Accesses to this page fail, as they do where nothing is mapped. */
void userfault_bar(struct tlb *t, uint64_t addr);
/* The barred pages of the range hold accesses again. */
void userfault_unbar(struct userfault_trap *u, uint64_t start, uint64_t end);
/* The same for all of them; takes the lock. */
void userfault_unbar_all(struct arena *a, void *arg);
/* Is all of the range in one VMA that cannot be written to? */
bool userfault_readonly(const struct tlb *t, uint64_t start, uint64_t end);
/* Is it all in one VMA? */
bool userfault_one_vma(const struct tlb *t, uint64_t start, uint64_t end);

/* ---- trap_ahead.c; the fault thread's ---- */

/* Do a piece of work, if there is any; takes the lock. False: there is none. */
bool userfault_ahead_step(struct arena *a);
/* Around the mapping of what an access needs, under the lock; the second when it succeeded. */
void userfault_ahead_begin(struct arena *a, uint64_t addr);
void userfault_ahead_note(struct arena *a, uint64_t addr, unsigned access);
/* How many leaves one mapping may have here; under the lock. */
unsigned userfault_ahead_limit(const struct userfault_trap *u, uint64_t addr, uint64_t pte,
			       unsigned otherwise);

#endif
