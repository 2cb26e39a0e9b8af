/* SPDX-License-Identifier: MIT */
/*
 * keep_client.c - a client for shell tests: holds memory and says what became of it.
 *
 * It opens the arena, fills private memory and a segment with numbers that depend on where they
 * lie, prints "open", and then obeys a line at a time:
 *
 *	check	every word is what it was; then a call, a fresh fault in each, and new numbers:
 *		prints "ok N", N being how often
 *	hold	without the daemon: every word is still there to read; calls and new faults fail as
 *		they are documented to: prints "held"
 *	quit	unlink, close, and end with 0
 *
 * Anything else that happens is a line that says what, and the end with 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arena/arena.h>

#define MIB ((size_t)1 << 20)
#define PRIVATE_BYTES (32 * MIB)
#define SEGMENT_BYTES (8 * MIB)
#define FRESH_PAGES 4096u /* of memory that nobody has touched, for one fault at a time: */
#define FRESH_STEP 521u   /* no fault fills ahead that far, and the order meets every page */
#define PAGE ((size_t)4096)
#define RW (PROT_READ | PROT_WRITE)

struct memory {
	uint64_t *words;
	size_t nr;
};

static arena_t *arena;
static struct memory memories[2]; /* private, segment */
static char *fresh;
static unsigned touched; /* pages of it */
static uint64_t generation;
static char segment_name[64];

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	exit(1);
}

static uint64_t expected(const uint64_t *word)
{
	return ((uintptr_t)word ^ generation << 48) * UINT64_C(0x9e3779b97f4a7c15);
}

static void fill(void)
{
	for (unsigned m = 0; m < 2; m++)
		for (size_t i = 0; i < memories[m].nr; i++)
			memories[m].words[i] = expected(&memories[m].words[i]);
}

static void compare(void)
{
	for (unsigned m = 0; m < 2; m++)
		for (size_t i = 0; i < memories[m].nr; i++)
			if (memories[m].words[i] != expected(&memories[m].words[i]))
				die("memory %u, byte %zu: %llx instead of %llx", m, i * 8,
				    (unsigned long long)memories[m].words[i],
				    (unsigned long long)expected(&memories[m].words[i]));
}

static void *map(size_t bytes)
{
	void *p = arena_mmap(arena, NULL, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("arena_mmap: %s", strerror(errno));
	return p;
}

static void open_all(void)
{
	arena_shm_t *s;

	if (arena_open(NULL, &arena))
		die("arena_open: %s", strerror(errno));
	memories[0] = (struct memory){map(PRIVATE_BYTES), PRIVATE_BYTES / 8};
	s = arena_shm_open(arena, segment_name, O_RDWR | O_CREAT | O_EXCL, 0660);
	if (!s || arena_shm_truncate(s, SEGMENT_BYTES))
		die("segment: %s", strerror(errno));
	memories[1] = (struct memory){arena_shm_mmap(s, NULL, SEGMENT_BYTES, RW, MAP_SHARED, 0),
				      SEGMENT_BYTES / 8};
	if (memories[1].words == MAP_FAILED)
		die("arena_shm_mmap: %s", strerror(errno));
	fresh = map(FRESH_PAGES * PAGE);
	/* Page by page, so that every touch of a fresh one needs the daemon. */
	if (arena_madvise(arena, fresh, FRESH_PAGES * PAGE, MADV_NOHUGEPAGE) ||
	    arena_madvise(arena, fresh, FRESH_PAGES * PAGE, MADV_RANDOM))
		die("arena_madvise: %s", strerror(errno));
	fill();
}

static void check(void)
{
	char text[4096];
	char *page = fresh + (touched * FRESH_STEP % FRESH_PAGES) * PAGE;

	compare();
	if (*page)
		die("fresh memory is not zero");
	*page = 1;
	touched++;
	if (arena_attr_read(arena, "proc/meminfo", text, sizeof(text)) <= 0)
		die("arena_attr_read: %s", strerror(errno));
	generation++;
	fill();
	printf("ok %llu\n", (unsigned long long)generation);
}

static sigjmp_buf caught;

static void catch (int sig)
{
	siglongjmp(caught, sig);
}

static void hold(void)
{
	struct sigaction sa = {.sa_handler = catch};
	volatile char *page = fresh + (FRESH_PAGES - 1) * PAGE;

	compare();
	if (arena_null(arena) == 0 || errno != ECONNRESET)
		die("a call without a daemon: %s", strerror(errno));
	if (sigaction(SIGBUS, &sa, NULL))
		die("sigaction: %s", strerror(errno));
	if (sigsetjmp(caught, 1) == 0) {
		*page = 1;
		die("a fresh page without a daemon");
	}
	compare();
	printf("held\n");
}

int main(void)
{
	char line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	snprintf(segment_name, sizeof(segment_name), "/keep-client-%d", (int)getpid());
	open_all();
	printf("open\n");
	while (fgets(line, sizeof(line), stdin)) {
		if (strcmp(line, "check\n") == 0)
			check();
		else if (strcmp(line, "hold\n") == 0)
			hold();
		else if (strcmp(line, "quit\n") == 0)
			break;
		else
			die("what is '%s'?", line);
	}
	arena_shm_unlink(arena, segment_name);
	arena_close(arena);
	return 0;
}
