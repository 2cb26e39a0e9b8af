/* SPDX-License-Identifier: MIT */
/* memblock against a map of bytes, and its text. */
#include "tests/phys_test.h"

#define SPACE 384u
#define NR_OPS 60000u

struct byte {
	bool memory, reserved;
	uint32_t nid, flags;
};

static struct byte model[SPACE];
static struct memblock mb;

static struct byte byte_at(uint64_t addr)
{
	struct byte b = {0};

	b.memory = memblock_is_memory(&mb, addr);
	b.reserved = memblock_is_reserved(&mb, addr);
	for (unsigned i = 0; i < mb.memory.nr; i++) {
		const struct memblock_region *r = &mb.memory.region[i];

		if (addr >= r->base && addr < r->base + r->size) {
			b.nid = r->nid;
			b.flags = r->flags;
		}
	}
	return b;
}

static void compare(void)
{
	uint64_t memory = 0, reserved = 0;

	assert_true(memblock_is_valid(&mb));
	for (unsigned i = 0; i < SPACE; i++) {
		struct byte b = byte_at(i);

		assert_int_equal(b.memory, model[i].memory);
		assert_int_equal(b.reserved, model[i].reserved);
		memory += b.memory;
		reserved += b.reserved;
		if (!b.memory)
			continue;
		assert_int_equal(b.nid, model[i].nid);
		assert_int_equal(b.flags, model[i].flags);
		assert_int_equal(memblock_is_map_memory(&mb, i), !(b.flags & MEMBLOCK_NOMAP));
	}
	assert_int_equal(memblock_phys_mem_size(&mb), memory);
	assert_int_equal(memblock_reserved_size(&mb), reserved);
}

static bool usable(unsigned i)
{
	return model[i].memory && !model[i].reserved && !(model[i].flags & MEMBLOCK_NOMAP);
}

static void compare_queries(uint64_t base, uint64_t size)
{
	struct memblock_region r;
	uint64_t cursor = 0, at = 0;
	bool all = true, any = false;

	for (uint64_t i = base; i < base + size; i++) {
		all &= model[i].memory;
		any |= model[i].reserved;
	}
	assert_int_equal(memblock_is_region_memory(&mb, base, size), all);
	assert_int_equal(memblock_is_region_reserved(&mb, base, size), any);
	while (memblock_next_free(&mb, &cursor, &r)) {
		for (; at < r.base; at++)
			assert_false(usable((unsigned)at));
		for (; at < r.base + r.size; at++) {
			assert_true(usable((unsigned)at));
			assert_int_equal(model[at].nid, r.nid);
		}
	}
	for (; at < SPACE; at++)
		assert_false(usable((unsigned)at));
}

static bool fits(uint64_t at, uint64_t size, uint64_t end, uint32_t nid)
{
	if (!at || at + size > end)
		return false;
	for (uint64_t i = at; i < at + size; i++)
		if (!usable((unsigned)i) || (nid != MEMBLOCK_ANY_NODE && model[i].nid != nid) ||
		    model[i].nid != model[at].nid || model[i].flags != model[at].flags)
			return false;
	return true;
}

/* Lowest or highest place that fits; regions of other nodes or flags are not joined. */
static uint64_t model_alloc(uint64_t size, uint64_t align, uint64_t start, uint64_t end,
			    uint32_t nid)
{
	uint64_t found = 0;

	for (uint64_t at = ALIGN_UP(start, align); at < SPACE; at += align) {
		if (!fits(at, size, MIN(end, (uint64_t)SPACE), nid))
			continue;
		found = at;
		if (mb.bottom_up)
			break;
	}
	return found;
}

static void op_alloc(struct prng *r)
{
	uint64_t size = 1 + prng_below(r, 12), align = UINT64_C(1) << prng_below(r, 5);
	uint64_t start = prng_below(r, SPACE), end = prng_below(r, 3) ? SPACE : start + 40;
	uint32_t nid = prng_below(r, 2) ? MEMBLOCK_ANY_NODE : (uint32_t)prng_below(r, 3);
	uint64_t want, got;

	mb.bottom_up = prng_below(r, 2);
	want = model_alloc(size, align, start, end, nid);
	got = memblock_alloc_range(&mb, size, align, start, end, nid);
	assert_int_equal(got, want);
	for (uint64_t i = got; got && i < got + size; i++)
		model[i].reserved = true;
}

static void op_change(struct prng *r, uint64_t base, uint64_t size)
{
	uint64_t what = prng_below(r, 7);
	uint32_t arg = (uint32_t)prng_below(r, 3);
	int ret;

	switch (what) {
	case 0:
	case 1:
		ret = memblock_add_node(&mb, base, size, arg, 0);
		break;
	case 2:
		ret = memblock_remove(&mb, base, size);
		break;
	case 3:
		ret = memblock_reserve(&mb, base, size);
		break;
	case 4:
		ret = memblock_free(&mb, base, size);
		break;
	case 5:
		ret = memblock_set_node(&mb, base, size, arg);
		break;
	default:
		arg = 1u << arg;
		ret = base & 1 ? memblock_mark(&mb, base, size, arg)
			       : memblock_clear(&mb, base, size, arg);
	}
	assert_int_equal(ret, 0);
	for (uint64_t i = base; i < base + size; i++) {
		struct byte *b = &model[i];

		if (what <= 1 && !b->memory)
			*b = (struct byte){.memory = true, .nid = arg, .reserved = b->reserved};
		else if (what == 2)
			b->memory = false;
		else if (what == 3 || what == 4)
			b->reserved = what == 3;
		else if (what == 5)
			b->nid = arg;
		else if (what == 6)
			b->flags = base & 1 ? b->flags | arg : b->flags & ~arg;
	}
}

static void test_random(void **state)
{
	struct prng r = {test_seed()};

	(void)state;
	memblock_init(&mb);
	for (unsigned i = 0; i < NR_OPS; i++) {
		uint64_t base = prng_below(&r, SPACE), size = 1 + prng_below(&r, 40);

		size = MIN(size, SPACE - base);
		if (i % 4 == 3)
			op_alloc(&r);
		else
			op_change(&r, base, size);
		if (i % 16 == 0) {
			compare();
			compare_queries(base, size);
		}
		if (i % 5000 == 4999) {
			memset(model, 0, sizeof(model));
			memblock_init(&mb);
		}
	}
}

static void test_errors_and_limits(void **state)
{
	(void)state;
	memblock_init(&mb);
	assert_int_equal(memblock_add(&mb, 0, 0), ARENA_E_INVALID);
	assert_int_equal(memblock_add(&mb, UINT64_MAX - 10, 11), ARENA_E_INVALID);
	assert_int_equal(memblock_reserve(&mb, 10, UINT64_MAX), ARENA_E_INVALID);
	assert_int_equal(memblock_trim_memory(&mb, 3), ARENA_E_INVALID);
	for (unsigned i = 0; i < MEMBLOCK_MAX_REGIONS; i++)
		assert_int_equal(memblock_add(&mb, i * 32, 16), 0);
	assert_int_equal(memblock_add(&mb, 1 << 20, 16), ARENA_E_NO_MEMORY);
	assert_int_equal(memblock_remove(&mb, 4, 4), ARENA_E_NO_MEMORY);
	assert_true(memblock_is_valid(&mb));
	assert_int_equal(memblock_phys_mem_size(&mb), MEMBLOCK_MAX_REGIONS * 16);
	assert_int_equal(memblock_add(&mb, 0, MEMBLOCK_MAX_REGIONS * 32), 0);
	assert_int_equal(mb.memory.nr, 1);
	assert_int_equal(memblock_start(&mb), 0);
	assert_int_equal(memblock_end(&mb), MEMBLOCK_MAX_REGIONS * 32);
}

static void test_trim_and_limit(void **state)
{
	(void)state;
	memblock_init(&mb);
	assert_int_equal(memblock_add(&mb, 100, 50), 0);   /* no whole 64 in it */
	assert_int_equal(memblock_add(&mb, 200, 300), 0);  /* 256..448 */
	assert_int_equal(memblock_add(&mb, 1000, 200), 0); /* 1024..1152 */
	assert_int_equal(memblock_trim_memory(&mb, 64), 0);
	assert_int_equal(mb.memory.nr, 2);
	assert_int_equal(mb.memory.region[0].base, 256);
	assert_int_equal(mb.memory.region[0].size, 192);
	assert_int_equal(mb.memory.region[1].base, 1024);
	assert_int_equal(mb.memory.region[1].size, 128);
	assert_int_equal(memblock_reserve(&mb, 1100, 20), 0);
	assert_int_equal(memblock_enforce_limit(&mb, 1000), 0);
	assert_int_equal(memblock_phys_mem_size(&mb), 320);
	assert_int_equal(memblock_enforce_limit(&mb, 200), 0);
	assert_int_equal(memblock_phys_mem_size(&mb), 200);
	assert_int_equal(memblock_end(&mb), 1032);
	assert_int_equal(memblock_reserved_size(&mb), 0);
	memblock_set_current_limit(&mb, 400);
	assert_int_equal(memblock_alloc(&mb, 16, 16), 384);
	mb.bottom_up = true;
	assert_int_equal(memblock_alloc(&mb, 16, 16), 256);
	assert_int_equal(memblock_alloc(&mb, 4096, 16), 0);
}

static void test_print(void **state)
{
	static const char expected[] =
		"   0: 0x0000000000000000..0x000000003fffffff    0 NONE\n"
		"   1: 0x0000000040000000..0x000000007fffffff    1 NOMAP\n"
		"   2: 0x0000000080000000..0x000000008000ffff    x HOTPLUG|MIRROR\n";
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);

	(void)state;
	memblock_init(&mb);
	assert_int_equal(memblock_add_node(&mb, 0, GIB, 0, 0), 0);
	assert_int_equal(memblock_add_node(&mb, GIB, GIB, 1, MEMBLOCK_NOMAP), 0);
	assert_int_equal(memblock_add(&mb, 2 * GIB, 65536), 0);
	assert_int_equal(memblock_mark(&mb, 2 * GIB, 65536, MEMBLOCK_HOTPLUG), 0);
	assert_int_equal(memblock_mark(&mb, 2 * GIB, 65536, MEMBLOCK_MIRROR), 0);
	memblock_print(&mb.memory, out);
	fclose(out);
	assert_string_equal(text, expected);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_errors_and_limits),
		cmocka_unit_test(test_trim_and_limit),
		cmocka_unit_test(test_print),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
