/* SPDX-License-Identifier: MIT */
/* lib_uffd.c - see lib_uffd.h. */
#include "tests/lib_uffd.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>

#include "base/userfault.h"

#define SEED 7

int uffd_group_setup(void **state)
{
	static struct test_daemon d = {.log_fd = -1, .control.fd = -1};
	char group[16];
	const char *args[] = {"--userfaultfd-group", group, NULL};
	int fd = userfault_open(-1);

	if (fd < 0) {
		printf("no userfaultfd here: %s\n", strerror(-fd));
		exit(77);
	}
	close(fd);
	signal(SIGPIPE, SIG_IGN);
	snprintf(group, sizeof(group), "%u", UFFD_MEMBER);
	daemon_start(&d, args);
	*state = &d;
	return 0;
}

void uffd_run(struct test_daemon *d, client_fn fn, void *arg)
{
	client_run(d, fn, arg);
	client_run_as(d, UFFD_MEMBER, fn, arg);
}

arena_t *uffd_open(struct test_daemon *d)
{
	arena_t *a = client_open_trap(d, ARENA_TRAP_USERFAULTFD);

	CHECK(strcmp(arena_trap_name(a), "userfaultfd") == 0);
	CHECK(strcmp(arena_trap_reason(), "") == 0);
	return a;
}

static void make_cow(arena_t *a, struct uffd_pages *out)
{
	char name[32];
	char *shared;

	snprintf(name, sizeof(name), "/uffd-%d", (int)getpid());
	out->segment = client_shm(a, name, O_RDWR | O_CREAT | O_EXCL, 0600);
	CHECK_OK(arena_shm_truncate(out->segment, (off_t)out->len));
	shared = arena_shm_mmap(out->segment, NULL, out->len, RW, MAP_SHARED, 0);
	CHECK(shared != MAP_FAILED);
	pattern_fill(shared, out->len, SEED);
	out->shared = shared;
	out->p = arena_shm_mmap(out->segment, NULL, out->len, RW, MAP_PRIVATE, 0);
	CHECK(out->p != MAP_FAILED);
	CHECK_OK(arena_shm_unlink(a, name));
	if (out->state == UFFD_COW)
		CHECK(pattern_is(out->p, out->len, SEED));
}

void uffd_make(arena_t *a, enum uffd_state state, size_t len, struct uffd_pages *out)
{
	*out = (struct uffd_pages){.state = state, .len = len};
	if (state == UFFD_COW || state == UFFD_COW_FRESH) {
		make_cow(a, out);
		return;
	}
	out->zero = state != UFFD_DROPPED && state != UFFD_MAPPED;
	out->p = client_map(a, len);
	CHECK_OK(arena_madvise(a, out->p, len,
			       state == UFFD_LEAF ? MADV_HUGEPAGE : MADV_NOHUGEPAGE));
	if (state == UFFD_READ)
		CHECK(is_zero(out->p, len));
	if (state == UFFD_DROPPED || state == UFFD_DISCARDED || state == UFFD_MAPPED)
		pattern_fill(out->p, len, SEED);
	if (state == UFFD_DISCARDED)
		CHECK_OK(arena_madvise(a, out->p, len, MADV_DONTNEED));
	if (state == UFFD_DROPPED) {
		CHECK_OK(arena_mprotect(a, out->p, len, PROT_NONE));
		CHECK_OK(arena_mprotect(a, out->p, len, RW));
	}
}

static void check_part(const struct uffd_pages *pages, size_t from, size_t to)
{
	char *expected = malloc(pages->len);

	CHECK(expected);
	memset(expected, 0, pages->len);
	if (!pages->zero)
		pattern_fill(expected, pages->len, SEED);
	CHECK(memcmp(pages->p + from, expected + from, to - from) == 0);
	free(expected);
}

void uffd_check_rest(const struct uffd_pages *pages, size_t from, size_t to)
{
	check_part(pages, 0, from);
	check_part(pages, to, pages->len);
	if (pages->shared)
		CHECK(pattern_is(pages->shared, pages->len, SEED));
}

void uffd_end(arena_t *a, struct uffd_pages *pages)
{
	CHECK_OK(arena_munmap(a, pages->p, pages->len));
	if (pages->shared)
		CHECK_OK(arena_munmap(a, (void *)(uintptr_t)pages->shared, pages->len));
	arena_shm_close(pages->segment);
}
