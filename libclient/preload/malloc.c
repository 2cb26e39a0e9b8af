/* SPDX-License-Identifier: MIT */
/*
 * malloc.c - the malloc family: all of it, for a program may mix its members.
 *
 * jemalloc's functions are renamed to je_NAME at build time. Who calls decides on the heap (preload.h):
 * the return address tells the C library and its loader from others, the guard the library itself. What
 * is freed or grown tells by its address: private_has(), or jemalloc knows.
 *
 * The C library's allocations are made without a thread's cache, so that none of the arena's blocks get
 * there; the program may be given one that the C library has freed, which is kernel memory then.
 */
#include <errno.h>
#include <gnu/libc-version.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "base/util.h"
#include "libclient/preload/jemalloc.h"
#include "libclient/preload/preload.h"

#define IS_POWER_OF_2(n) ((n) && !((n) & ((n)-1)))
#define STRING_(x) #x
#define STRING(x) STRING_(x)

/*
 * No sbrk(2), which is no arena memory. Few arenas, for each has its own leaves. Dirty memory is given
 * back late: it costs a call and takes a leaf apart.
 */
const char *je_malloc_conf = "dss:disabled,narenas:4,dirty_decay_ms:30000,muzzy_decay_ms:0,"
			     "abort_conf:false";

/* ---- who calls ---- */

struct text {
	uintptr_t start, size;
};

static struct text libc_text, loader_text;
static unsigned kernel_arena; /* jemalloc's number; 0: none, its first is the program's */

static inline bool is_in(const struct text *t, uintptr_t addr)
{
	return addr - t->start < t->size;
}

enum heap { HEAP_ARENA, HEAP_KERNEL, HEAP_PRIVATE };

static inline enum heap heap_of_caller(const void *caller)
{
	uintptr_t addr = (uintptr_t)caller;

	if (unlikely(preload_inside))
		return HEAP_PRIVATE;
	if (unlikely(!libc_text.size))
		malloc_start();
	if (unlikely(is_in(&libc_text, addr) || is_in(&loader_text, addr)))
		return HEAP_KERNEL;
	return HEAP_ARENA;
}

#define CALLER __builtin_return_address(0)

static int find_text(struct dl_phdr_info *info, size_t size, void *arg)
{
	uintptr_t libc = (uintptr_t)gnu_get_libc_version, loader = getauxval(AT_BASE);

	(void)size;
	(void)arg;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		struct text t = {.start = info->dlpi_addr + ph->p_vaddr, .size = ph->p_memsz};

		if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_X))
			continue;
		if (is_in(&t, libc))
			libc_text = t;
		if (info->dlpi_addr == loader)
			loader_text = t;
	}
	return 0;
}

void malloc_start(void)
{
	extent_hooks_t *hooks = &kernel_heap_hooks;
	size_t size = sizeof(kernel_arena);
	unsigned number = 0;

	if (load_acquire(&kernel_arena))
		return;
	dl_iterate_phdr(find_text, NULL);
	if (je_mallctl("arenas.create", &number, &size, &hooks, sizeof(hooks)) == 0)
		store_release(&kernel_arena, number);
}

/* ---- allocation by heap ---- */

static void *none(void)
{
	errno = ENOMEM;
	return NULL;
}

/* What is not the program's; `align` 0: as malloc(). Zeroed if `zero`. */
static void *allocate(enum heap heap, size_t size, size_t align, bool zero)
{
	int flags = MALLOCX_TCACHE_NONE | (zero ? MALLOCX_ZERO : 0);
	void *p;

	if (heap == HEAP_PRIVATE)
		p = private_alloc(MAX(size, align));
	else if (!kernel_arena && !align)
		return zero ? je_calloc(1, size) : je_malloc(size);
	else
		p = je_mallocx(size ? size : 1,
			       flags | (align ? MALLOCX_ALIGN(align) : 0) |
				       (kernel_arena ? MALLOCX_ARENA(kernel_arena) : 0));
	return p ? p : none();
}

PRELOAD_EXPORT void *malloc(size_t size)
{
	enum heap heap = heap_of_caller(CALLER);

	return likely(heap == HEAP_ARENA) ? je_malloc(size) : allocate(heap, size, 0, false);
}

PRELOAD_EXPORT void *calloc(size_t n, size_t size)
{
	enum heap heap = heap_of_caller(CALLER);
	size_t bytes;

	if (likely(heap == HEAP_ARENA))
		return je_calloc(n, size);
	return __builtin_mul_overflow(n, size, &bytes) ? none() : allocate(heap, bytes, 0, true);
}

PRELOAD_EXPORT void free(void *p)
{
	if (unlikely(private_has(p)))
		private_free(p);
	else
		je_free(p);
}

static void *move_private(enum heap heap, void *old, size_t size)
{
	size_t had = private_usable_size(old);
	void *p;

	if (had >= size && heap == HEAP_PRIVATE)
		return old;
	p = heap == HEAP_ARENA ? je_malloc(size) : allocate(heap, size, 0, false);
	if (!p)
		return NULL;
	memcpy(p, old, MIN(had, size));
	private_free(old);
	return p;
}

static void *move_to(enum heap heap, void *old, size_t size)
{
	void *p;

	if (!old)
		return allocate(heap, size, 0, false);
	if (private_has(old))
		return move_private(heap, old, size);
	if (size == 0) {
		je_free(old);
		return NULL;
	}
	if (heap == HEAP_KERNEL && kernel_arena) {
		p = je_rallocx(old, size, MALLOCX_TCACHE_NONE | MALLOCX_ARENA(kernel_arena));
		return p ? p : none();
	}
	p = allocate(heap, size, 0, false);
	if (p) {
		memcpy(p, old, MIN(je_malloc_usable_size(old), size));
		je_free(old);
	}
	return p;
}

PRELOAD_EXPORT void *realloc(void *old, size_t size)
{
	enum heap heap = heap_of_caller(CALLER);

	if (likely(heap == HEAP_ARENA && !private_has(old)))
		return je_realloc(old, size);
	return move_to(heap, old, size);
}

PRELOAD_EXPORT void *reallocarray(void *old, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		return none();
	if (unlikely(private_has(old)))
		return move_to(heap_of_caller(CALLER), old, bytes);
	return je_realloc(old, bytes);
}

PRELOAD_EXPORT int posix_memalign(void **out, size_t align, size_t size)
{
	enum heap heap = heap_of_caller(CALLER);
	int before = errno;
	void *p;

	if (likely(heap == HEAP_ARENA))
		return je_posix_memalign(out, align, size);
	if (align % sizeof(void *) || !IS_POWER_OF_2(align))
		return EINVAL;
	p = allocate(heap, size, align, false);
	errno = before;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

static void *aligned(enum heap heap, size_t align, size_t size)
{
	if (likely(heap == HEAP_ARENA))
		return je_memalign(align, size);
	return allocate(heap, size, align, false);
}

/* As the C library's: an alignment that is no power of two is rounded up to the next. */
PRELOAD_EXPORT void *memalign(size_t align, size_t size)
{
	size_t power = sizeof(void *);

	while (power < align && power << 1)
		power <<= 1;
	return aligned(heap_of_caller(CALLER), power, size);
}

PRELOAD_EXPORT void *aligned_alloc(size_t align, size_t size)
{
	if (!IS_POWER_OF_2(align)) {
		errno = EINVAL;
		return NULL;
	}
	return aligned(heap_of_caller(CALLER), MAX(align, sizeof(void *)), size);
}

PRELOAD_EXPORT void *valloc(size_t size)
{
	return aligned(heap_of_caller(CALLER), 4096, size);
}

PRELOAD_EXPORT void *pvalloc(size_t size)
{
	size_t whole = ALIGN_UP(size, (size_t)4096);

	return whole < size ? none() : aligned(heap_of_caller(CALLER), 4096, MAX(whole, 4096ul));
}

PRELOAD_EXPORT size_t malloc_usable_size(void *p)
{
	if (!p)
		return 0;
	return private_has(p) ? private_usable_size(p) : je_malloc_usable_size(p);
}

/* Strings are the program's, though the C library allocates them. */
PRELOAD_EXPORT char *strdup(const char *s)
{
	size_t size = strlen(s) + 1;
	char *p = preload_inside ? private_alloc(size) : je_malloc(size);

	return p ? memcpy(p, s, size) : none();
}

PRELOAD_EXPORT char *strndup(const char *s, size_t n)
{
	size_t len = strnlen(s, n);
	char *p = preload_inside ? private_alloc(len + 1) : je_malloc(len + 1);

	if (!p)
		return none();
	memcpy(p, s, len);
	p[len] = '\0';
	return p;
}

/* 1: memory was given back. */
PRELOAD_EXPORT int malloc_trim(size_t pad)
{
	(void)pad;
	return je_mallctl("arena." STRING(MALLCTL_ARENAS_ALL) ".purge", NULL, NULL, NULL, 0) == 0;
}
