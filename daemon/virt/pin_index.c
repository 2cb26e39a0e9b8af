/* SPDX-License-Identifier: MIT */
/*
 * pin_index.c - which pin record covers an address, and which are free. Runs of pinned pages overlap where
 * pages are pinned more than once, so it is an interval tree: ordered by start, each node with the
 * highest end below it.
 *
 *	struct mm -> struct pin_index -> chunks of nodes, node i beside record i -> tree | free list
 *
 * All of it follows from the records (pin.c), whose truth is stored before it is told here.
 *
 * Invariants: a record is true (pages > 0) if and only if its node is in the tree, with its range; else it is
 * on the free list, or at or above `top`.
 */
#include "daemon/virt/internal.h"

#define CHUNK 256u
#define NO_RECORD UINT32_MAX

struct pin_node {
	RB_ENTRY(pin_node) link;
	uint64_t start, end;
	uint64_t max; /* highest end in the subtree */
	uint32_t record;
	uint32_t next_free;
	bool in_tree;
};
RB_HEAD(pin_tree, pin_node);

struct pin_index {
	struct pin_tree tree;
	struct pin_node *chunk[ARENA_MM_MAX_PINS / CHUNK];
	uint32_t top; /* nodes below this are in the tree or free */
	uint32_t first_free;
};

static int node_compare(const struct pin_node *a, const struct pin_node *b)
{
	if (a->start != b->start)
		return a->start < b->start ? -1 : 1;
	return a->record < b->record ? -1 : a->record > b->record;
}

static uint64_t max_below(const struct pin_node *n)
{
	const struct pin_node *l = RB_LEFT(n, link), *r = RB_RIGHT(n, link);
	uint64_t max = n->end;

	if (l)
		max = MAX(max, l->max);
	return r ? MAX(max, r->max) : max;
}

/* To the root, always: the tree's macros do not follow every change up there. */
static void node_augment(struct pin_node *n)
{
	for (; n; n = RB_PARENT(n, link))
		n->max = max_below(n);
}

#undef RB_AUGMENT
#define RB_AUGMENT(n) node_augment(n)
RB_PROTOTYPE(pin_tree, pin_node, link, node_compare)
RB_GENERATE(pin_tree, pin_node, link, node_compare)

static struct pin_node *node_at(const struct pin_index *x, uint32_t record)
{
	return &x->chunk[record / CHUNK][record % CHUNK];
}

int pin_index_reserve(struct mm *mm, uint32_t n)
{
	uint32_t i;

	if (!mm->pins) {
		mm->pins = mem_alloc(sizeof(*mm->pins));
		if (!mm->pins)
			return ARENA_E_NO_MEMORY;
		RB_INIT(&mm->pins->tree);
		mm->pins->first_free = NO_RECORD;
	}
	for (i = 0; i < n; i += CHUNK) {
		struct pin_node **chunk = &mm->pins->chunk[i / CHUNK];

		if (!*chunk)
			*chunk = mem_array(CHUNK, sizeof(**chunk));
		if (!*chunk)
			return ARENA_E_NO_MEMORY;
	}
	return 0;
}

void pin_index_free(struct mm *mm)
{
	unsigned i;

	for (i = 0; mm->pins && i < ARRAY_SIZE(mm->pins->chunk); i++)
		free(mm->pins->chunk[i]);
	free(mm->pins);
	mm->pins = NULL;
}

int pin_index_take(struct mm *mm, uint32_t *record)
{
	struct pin_index *x = mm->pins;
	int r;

	if (x && x->first_free != NO_RECORD) {
		*record = x->first_free;
		x->first_free = node_at(x, *record)->next_free;
		return 0;
	}
	if (x && x->top == ARENA_MM_MAX_PINS)
		return ARENA_E_NO_MEMORY;
	r = pin_index_reserve(mm, (x ? x->top : 0) + 1);
	if (!r)
		*record = mm->pins->top++;
	return r;
}

void pin_index_give(struct mm *mm, uint32_t record)
{
	struct pin_node *n = node_at(mm->pins, record);

	if (n->in_tree)
		RB_REMOVE(pin_tree, &mm->pins->tree, n);
	*n = (struct pin_node){.next_free = mm->pins->first_free};
	mm->pins->first_free = record;
}

void pin_index_set(struct mm *mm, uint32_t record, uint64_t start, uint64_t end)
{
	struct pin_node *n = node_at(mm->pins, record);

	if (n->in_tree) {
		BUG_ON(n->start != start);
		n->end = end;
		node_augment(n);
		return;
	}
	*n = (struct pin_node){
		.start = start, .end = end, .max = end, .record = record, .in_tree = true};
	RB_INSERT(pin_tree, &mm->pins->tree, n);
}

bool pin_index_find(const struct mm *mm, uint64_t addr, uint32_t *record)
{
	const struct pin_node *n = mm->pins ? RB_ROOT(&mm->pins->tree) : NULL;

	/*
	 * What begins on the left of n begins at or below it: if something there ends behind addr, it
	 * covers addr, or nothing on the right, which begins above it, does.
	 */
	while (n) {
		const struct pin_node *l = RB_LEFT(n, link);

		if (l && l->max > addr) {
			n = l;
		} else if (n->start <= addr && addr < n->end) {
			*record = n->record;
			return true;
		} else {
			n = n->start <= addr ? RB_RIGHT(n, link) : NULL;
		}
	}
	return false;
}

void pin_index_rebuild(struct mm *mm, uint32_t n, pin_range range)
{
	uint32_t i;

	if (!n)
		return;
	mm->pins->top = n;
	for (i = n; i-- > 0;) {
		uint64_t start;
		uint32_t pages = range(mm, i, &start);

		if (pages)
			pin_index_set(mm, i, start, start + ((uint64_t)pages << ARENA_PAGE_SHIFT));
		else
			pin_index_give(mm, i);
	}
}

uint32_t pin_index_top(const struct mm *mm)
{
	return mm->pins ? mm->pins->top : 0;
}

bool pin_index_is_valid(const struct mm *mm, pin_range range)
{
	const struct pin_index *x = mm->pins;
	uint32_t i, nr_free = 0, listed = 0;

	for (i = 0; x && i < x->top; i++) {
		const struct pin_node *n = node_at(x, i);
		uint64_t start;
		uint32_t pages = range(mm, i, &start);

		nr_free += !n->in_tree;
		if (n->in_tree != (pages != 0) ||
		    (pages && (n->record != i || n->start != start || n->max != max_below(n) ||
			       n->end != start + ((uint64_t)pages << ARENA_PAGE_SHIFT))))
			return false;
	}
	for (i = x ? x->first_free : NO_RECORD; i != NO_RECORD && listed <= nr_free; listed++)
		i = node_at(x, i)->next_free;
	return listed == nr_free;
}
