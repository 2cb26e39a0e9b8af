/* SPDX-License-Identifier: MIT */
/*
 * domain.c - who may see a frame: a file of the arena's size for each domain, and its life.
 *
 * A record's slot in the state is found by scanning from id % STATE_MAX_DOMAINS on, so that an id
 * is looked up with one probe as a rule. Ids are never used again: the header's next_domain is
 * raised before a record takes its id, and the record's kind, stored last, makes it live.
 *
 * A domain lives while it is referenced, has frames in use, or kzerod writes to its blocks. Then
 * its free blocks go to domain 0, its record is freed, and its file with it. The store has the file
 * before the record is live and after it is freed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "daemon/phys/internal.h"
#include "daemon/store/store.h"
#include "daemon/sync/lock.h"

static uint32_t slot_find_free(struct phys *p, uint32_t id)
{
	for (uint32_t i = 0; i < STATE_MAX_DOMAINS; i++) {
		uint32_t slot = (id + i) % STATE_MAX_DOMAINS;

		if (!p->domains[slot])
			return slot;
	}
	return UINT32_MAX;
}

static struct domain *domain_new(struct phys *p, enum domain_kind kind, uint32_t owner)
{
	struct domain *d = mem_alloc(sizeof(*d) + p->nr_zones * sizeof(d->zone[0]));

	if (!d)
		return NULL;
	d->phys = p;
	d->kind = kind;
	d->owner = owner;
	d->fd = -1;
	d->refs = 1;
	return d;
}

static void domain_release(struct domain *d)
{
	struct phys *p = d->phys;

	for (unsigned i = 0; i < p->nr_zones; i++) {
		if (!d->zone[i])
			continue;
		for (unsigned cpu = 0; cpu < p->nr_cpus; cpu++)
			free(d->zone[i]->pcp[cpu]);
		free(d->zone[i]);
	}
	if (d->map)
		os_unmap(d->map, p->nr_frames << ARENA_PAGE_SHIFT);
	if (d->fd >= 0)
		close(d->fd);
	free(d);
}

static uint32_t record_checksum(uint32_t id, uint32_t kind, uint32_t owner)
{
	uint32_t sum = id * 0x9e3779b1u;

	sum = (sum ^ kind) * 0x9e3779b1u;
	return (sum ^ owner) * 0x9e3779b1u ^ 0x5bd1e995u;
}

static void domain_store_record(struct state *s, const struct domain *d)
{
	struct domain_record *rec = &s->domains[d->slot];

	truth_store(&rec->id, d->id);
	truth_store(&rec->owner, d->owner);
	truth_store(&rec->checksum, record_checksum(d->id, d->kind, d->owner));
	truth_store(&rec->kind, d->kind);
}

int domain_init_daemon(struct phys *p)
{
	struct domain *d = domain_new(p, DOMAIN_DAEMON, 0);

	if (!d)
		return ARENA_E_NO_MEMORY;
	p->domains[0] = d;
	for (unsigned n = 0; n < p->nr_nodes; n++)
		for (unsigned t = 0; t < NR_ZONE_TYPES; t++)
			if (!domain_zone(d, &p->node[n].zone[t]))
				return ARENA_E_NO_MEMORY;
	domain_store_record(p->state, d);
	return 0;
}

/* Real nodes: each node's range of the file comes from that node of the host. */
static int bind_nodes(struct phys *p, struct domain *d)
{
	for (unsigned n = 0; n < p->nr_nodes; n++) {
		const struct node *node = &p->node[n];
		uint64_t start = (uint64_t)node->start << ARENA_PAGE_SHIFT;
		uint64_t end = (uint64_t)node->end << ARENA_PAGE_SHIFT;
		int r = numa_bind_range(p->topology, (char *)d->map + start, end - start, n);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Map the domain's file, which it has. */
static int domain_map(struct domain *d)
{
	struct phys *p = d->phys;
	unsigned flags = OS_MAP_READ | OS_MAP_WRITE | (p->hugepages ? OS_MAP_HUGE : 0);
	void *map;
	int r = os_map(d->fd, 0, p->nr_frames << ARENA_PAGE_SHIFT, flags, &map);

	if (r < 0)
		return r;
	d->map = map;
	return bind_nodes(p, d);
}

/* A file, mapped, and kept by the store before any record names it. */
static int domain_make_file(struct domain *d)
{
	char name[32];
	int r;

	snprintf(name, sizeof(name), "arena:%u", d->id);
	d->fd = r = os_memfd(name, d->phys->nr_frames << ARENA_PAGE_SHIFT);
	if (r >= 0)
		r = domain_map(d);
	return r < 0 ? r : store_add_number("arena", d->id, d->fd);
}

static void domain_enter(struct domain *d)
{
	d->phys->domains[d->slot] = d;
	TAILQ_INSERT_TAIL(&d->phys->live, d, link);
}

int domain_create(struct phys *p, enum domain_kind kind, uint32_t owner, struct domain **out)
{
	struct state_header *h = p->state->header;
	struct domain *d;
	int r;

	CONTROL_THREAD();
	if (kind <= DOMAIN_DAEMON || kind > DOMAIN_PROCESS)
		return ARENA_E_INVALID;
	if (h->next_domain == UINT32_MAX)
		return ARENA_E_NO_MEMORY;
	d = domain_new(p, kind, owner);
	if (!d)
		return ARENA_E_NO_MEMORY;
	d->id = h->next_domain;
	d->slot = slot_find_free(p, d->id);
	if (d->slot == UINT32_MAX) {
		domain_release(d);
		return ARENA_E_NO_MEMORY;
	}
	truth_store(&h->next_domain, d->id + 1);
	r = domain_make_file(d);
	if (r < 0) {
		domain_release(d);
		return r;
	}
	domain_store_record(p->state, d);
	domain_enter(d);
	*out = d;
	return 0;
}

/* ---- recovery ---- */

/* Does the store have the file of this domain, and is it that? */
static int domain_take_file(struct domain *d)
{
	uint64_t size, wanted = d->phys->nr_frames << ARENA_PAGE_SHIFT;
	char name[32], expected[32];
	int r;

	d->fd = store_take_number("arena", d->id);
	if (d->fd < 0) {
		log_err("domain %u is lost: nobody kept its file", d->id);
		return ARENA_E_INVALID;
	}
	if (os_memfd_size(d->fd, &size) < 0 || size != wanted) {
		log_err("domain %u is lost: what was kept as its file is not an arena of %llu "
			"bytes",
			d->id, (unsigned long long)wanted);
		return ARENA_E_INVALID;
	}
	snprintf(expected, sizeof(expected), "arena:%u", d->id);
	/* Where /proc does not tell, the size has to do. */
	if (os_memfd_name(d->fd, name, sizeof(name)) == 0 && strcmp(name, expected) != 0) {
		log_err("domain %u is lost: what was kept as its file is %s", d->id, name);
		return ARENA_E_INVALID;
	}
	r = domain_map(d);
	if (r == -EACCES || r == -EPERM) {
		log_err("domain %u is lost: its file cannot be written: %s", d->id, error_text(r));
		return ARENA_E_INVALID;
	}
	return r;
}

int domain_recover(struct phys *p, const struct domain_record *rec, uint32_t slot)
{
	struct domain *d;
	int r;

	if (rec->kind <= DOMAIN_DAEMON || rec->kind > DOMAIN_PROCESS || !rec->id ||
	    rec->checksum != record_checksum(rec->id, rec->kind, rec->owner) ||
	    domain_by_id(p, rec->id)) {
		log_err("domain record %u is damaged: id %u kind %u owner %u", slot, rec->id,
			rec->kind, rec->owner);
		return ARENA_E_INVALID;
	}
	d = domain_new(p, rec->kind, rec->owner);
	if (!d)
		return ARENA_E_NO_MEMORY;
	d->refs = 0;
	d->id = rec->id;
	d->slot = slot;
	r = domain_take_file(d);
	if (r) {
		domain_release(d);
		return r;
	}
	domain_enter(d);
	return 0;
}

struct domain *domain_find(struct phys *p, enum domain_kind kind, uint32_t owner)
{
	struct domain *d;

	TAILQ_FOREACH(d, &p->live, link)
		if (d->kind == kind && d->owner == owner && d->refs)
			return domain_get(d);
	return NULL;
}

struct domain *domain_get(struct domain *d)
{
	d->refs++;
	return d;
}

struct domain *domain_put(struct domain *d)
{
	if (!d)
		return NULL;
	BUG_ON(!d->refs);
	if (--d->refs)
		return NULL;
	if (d->active) {
		d->active = false;
		d->phys->nr_active--;
	}
	domain_try_end(d);
	return NULL;
}

/* The file goes away with the domain, so that a block the host does not take back is lost to the
 * host only until the last client lets go of the file. */
static void domain_return_blocks(struct domain *d)
{
	struct phys *p = d->phys;

	drain_pages(p, d);
	for (unsigned i = 0; i < p->nr_zones; i++) {
		struct domain_zone *dz = d->zone[i];

		if (!dz)
			continue;
		for (unsigned o = PAGEBLOCK_ORDER; o < NR_ORDERS; o++)
			for (unsigned t = 0; t < NR_MIGRATETYPES; t++)
				for (unsigned c = 0; c < NR_CONTENTS; c++)
					while (dz->list[o][t][c].count) {
						pfn_t pfn = dz->list[o][t][c].head;

						buddy_del(p, pfn);
						if (block_give_back(p, pfn, o, c))
							continue;
						log_warning("domain %u: the host did not take back "
							    "block %u",
							    d->id, pfn);
						BUG_ON(!block_give_back(p, pfn, o, CONTENT_HOLE));
					}
	}
	BUG_ON(d->nr_blocks);
}

void domain_try_end(struct domain *d)
{
	struct phys *p = d->phys;

	if (d->refs || d->nr_used || d->nr_isolated || p->retired || p->recovery)
		return;
	domain_return_blocks(d);
	truth_store(&p->state->domains[d->slot].kind, DOMAIN_FREE);
	store_remove_number("arena", d->id);
	kzerod_forget(d);
	if (p->uncache_next == d)
		p->uncache_next = TAILQ_NEXT(d, link);
	TAILQ_REMOVE(&p->live, d, link);
	p->domains[d->slot] = NULL;
	domain_release(d);
}

void domain_end_unused(struct phys *p)
{
	struct domain *d = TAILQ_FIRST(&p->live), *next;

	CONTROL_THREAD();
	for (; d; d = next) {
		next = TAILQ_NEXT(d, link);
		domain_try_end(d);
	}
}

void domain_destroy_all(struct phys *p, bool unkeep)
{
	struct domain *d;

	while ((d = TAILQ_FIRST(&p->live))) {
		TAILQ_REMOVE(&p->live, d, link);
		if (unkeep)
			store_remove_number("arena", d->id);
		domain_release(d);
	}
	if (p->domains[0])
		domain_release(p->domains[0]);
}

struct domain_zone *domain_zone(struct domain *d, const struct zone *z)
{
	struct domain_zone *dz = d->zone[z->index];

	if (likely(dz))
		return dz;
	dz = mem_alloc(sizeof(*dz) + d->phys->nr_cpus * sizeof(dz->pcp[0]));
	if (!dz)
		return NULL;
	dz->next_claim = PFN_NONE;
	d->zone[z->index] = dz;
	return dz;
}

uint32_t domain_id(const struct domain *d)
{
	return d->id;
}

enum domain_kind domain_kind(const struct domain *d)
{
	return d->kind;
}

uint32_t domain_owner(const struct domain *d)
{
	return d->owner;
}

struct domain *domain_by_id(struct phys *p, uint32_t id)
{
	for (uint32_t i = 0; i < STATE_MAX_DOMAINS; i++) {
		struct domain *d = p->domains[(id + i) % STATE_MAX_DOMAINS];

		if (d && d->id == id)
			return d;
	}
	return NULL;
}

int domain_fd(const struct domain *d)
{
	return d->fd;
}

void *domain_address(const struct domain *d, pfn_t pfn)
{
	return d->map + ((uint64_t)pfn << ARENA_PAGE_SHIFT);
}

uint64_t domain_used_pages(const struct domain *d)
{
	return d->nr_used;
}

uint64_t domain_owned_blocks(const struct domain *d)
{
	return d->nr_blocks;
}

struct domain *pfn_domain(struct phys *p, pfn_t pfn)
{
	struct domain *d;

	if (pfn >= p->nr_frames)
		return NULL;
	d = block_owner(p, pfn);
	return d == p->domains[0] ? NULL : d;
}
