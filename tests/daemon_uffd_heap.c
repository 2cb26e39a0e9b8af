/* SPDX-License-Identifier: MIT */
/*
 * daemon_uffd_heap.c - the C library's heap in arena memory, and fork(): open files, their buffers and locks,
 * data of threads, name services, what the library itself allocates. The malloc family is this program's: from
 * the arena in a client that has said so, else the C library's.
 */
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/util.h"
#include "tests/lib_uffd.h"

#if TEST_SANITIZED
int main(void)
{
	puts("a sanitizer has a heap of its own");
	return 77;
}
#else

#define HEAP (64 * LEAF)
extern char **environ;

/* ---- the heap ------------------------------------------------------------------------------ */

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
extern void __libc_free(void *p);

static char *heap;
static size_t heap_used;

static bool in_heap(const void *p)
{
	return heap && (const char *)p >= heap && (const char *)p < heap + HEAP;
}

/* A size before each piece; nothing is used twice. */
static void *take(size_t align, size_t n)
{
	size_t old = load_relaxed(&heap_used), start;

	do
		start = ALIGN_UP(old + 16, MAX(align, (size_t)16));
	while (!__atomic_compare_exchange_n(&heap_used, &old, start + n, false, __ATOMIC_RELAXED,
					    __ATOMIC_RELAXED));
	if (start + n > HEAP)
		abort();
	*(size_t *)(void *)(heap + start - 16) = n;
	return heap + start;
}

void *malloc(size_t n)
{
	return heap ? take(16, n) : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	return heap ? take(16, n * size) : __libc_calloc(n, size);
}

void *memalign(size_t align, size_t n)
{
	return heap ? take(align, n) : __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	return memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
	*p = memalign(align, n);
	return *p ? 0 : ENOMEM;
}

void free(void *p)
{
	if (!in_heap(p))
		__libc_free(p);
}

static size_t size_of(void *p)
{
	return *(size_t *)(void *)((char *)p - 16);
}

size_t malloc_usable_size(void *p)
{
	return in_heap(p) ? size_of(p) : 0;
}

void *realloc(void *p, size_t n)
{
	void *to;

	if (!heap || (p && !in_heap(p)))
		return __libc_realloc(p, n);
	to = malloc(n);
	if (p)
		memcpy(to, p, MIN(n, size_of(p)));
	return to;
}

static arena_t *heap_begin(struct test_daemon *d)
{
	arena_t *a = uffd_open(d);
	char *p = client_map(a, HEAP);

	CHECK_OK(arena_madvise(a, p, HEAP, MADV_NOHUGEPAGE));
	heap = p;
	return a;
}

/* ---- files ----------------------------------------------------------------------------------- */

#define FILES 5

static void check_text(FILE *f, const char *expected)
{
	char line[256];

	rewind(f);
	CHECK(fgets(line, sizeof(line), f));
	CHECK(strcmp(line, expected) == 0);
}

static void generation(FILE **f, unsigned depth)
{
	char expected[256] = "";
	pid_t pid;

	for (unsigned i = 0; i < depth; i++)
		sprintf(expected + strlen(expected), "%u ", i);
	if (depth == 5) {
		for (int i = 0; i < FILES; i++)
			CHECK(fileno(f[i]) > 2);
		CHECK_OK(fflush(f[0]));
		check_text(f[0], expected);
		return;
	}
	/* Into the buffer, which each generation inherits. */
	CHECK(fprintf(f[0], "%u ", depth) == 2);
	IN_CHILD(pid) generation(f, depth + 1);
	expect_child(pid);
}

static void do_files(struct test_daemon *d, void *arg)
{
	arena_t *a = heap_begin(d);
	FILE *f[FILES];

	(void)arg;
	for (int i = 0; i < FILES; i++) {
		f[i] = tmpfile();
		CHECK(f[i] && in_heap(f[i]));
	}
	generation(f, 0);
	for (int i = 1; i < FILES; i++)
		CHECK_OK(fclose(f[i]));
	CHECK_OK(arena_null(a));
}

static void test_files(void **state)
{
	uffd_run(*state, do_files, NULL);
}

/* ---- threads ------------------------------------------------------------------------------------ */

#define KEYS 100 /* more than the C library has room for beside the thread's stack */

struct holder {
	pthread_key_t key[KEYS];
	pthread_barrier_t ready;
	uint32_t stop;
};

static void *hold_keys(void *arg)
{
	struct holder *h = arg;
	FILE *f = tmpfile();

	for (uintptr_t i = 0; i < KEYS; i++)
		CHECK_OK(pthread_setspecific(h->key[i], (void *)(i + 1)));
	pthread_barrier_wait(&h->ready);
	/* In the heap and in files all the time that others fork. */
	while (!load_relaxed(&h->stop)) {
		char *p = malloc(64);

		memset(p, 1, 64);
		fprintf(f, "%p\n", (void *)p);
		usleep(200);
	}
	for (uintptr_t i = 0; i < KEYS; i++)
		CHECK(pthread_getspecific(h->key[i]) == (void *)(i + 1));
	fclose(f);
	return NULL;
}

static void *in_thread_of_child(void *arg)
{
	char *p = malloc(3 * PAGE);

	memset(p, 7, 3 * PAGE);
	CHECK(p[0] == 7 && p[3 * PAGE - 1] == 7);
	free(p);
	return arg;
}

static void do_threads(struct test_daemon *d, void *arg)
{
	arena_t *a = heap_begin(d);
	struct holder *h = calloc(1, sizeof(*h));
	pthread_t thread[3];
	sigset_t all;
	pid_t pid;

	(void)arg;
	CHECK(getpwuid(0));
	for (int i = 0; i < KEYS; i++)
		CHECK_OK(pthread_key_create(&h->key[i], NULL));
	CHECK_OK(pthread_barrier_init(&h->ready, NULL, 4));
	for (int i = 0; i < 3; i++)
		CHECK_OK(pthread_create(&thread[i], NULL, hold_keys, h));
	pthread_barrier_wait(&h->ready);
	sigfillset(&all);
	for (unsigned i = 0; i < test_scaled(30); i++) {
		uint64_t *mark = malloc(sizeof(*mark));

		*mark = i;
		if (i == 10)
			CHECK_OK(pthread_sigmask(SIG_BLOCK, &all, NULL));
		IN_CHILD(pid)
		{
			pthread_t mine;

			CHECK(*mark == i);
			*mark = 1000;
			CHECK(getpwuid(0));
			CHECK_OK(pthread_create(&mine, NULL, in_thread_of_child, NULL));
			CHECK_OK(pthread_join(mine, NULL));
			CHECK_OK(arena_null(a));
		}
		expect_child(pid);
		CHECK(*mark == i);
	}
	store_relaxed(&h->stop, 1);
	for (int i = 0; i < 3; i++)
		CHECK_OK(pthread_join(thread[i], NULL));
}

static void test_threads(void **state)
{
	uffd_run(*state, do_threads, NULL);
}

/* ---- other ways to make a process --------------------------------------------------------------- */

static void do_spawn(struct test_daemon *d, void *arg)
{
	arena_t *a = heap_begin(d);
	char *program = strdup("/bin/sh"), *option = strdup("-c");
	char *command = strdup("test \"$VALUE\" = yes"), *variable = strdup("VALUE=yes");
	char **argv = calloc(4, sizeof(char *)), **env = calloc(2, sizeof(char *));
	char line[64];
	pid_t pid;
	FILE *f;

	(void)arg;
	CHECK(in_heap(program) && in_heap(argv));
	argv[0] = program, argv[1] = option, argv[2] = command;
	env[0] = variable;
	for (int i = 0; i < 10; i++) {
		CHECK_OK(posix_spawn(&pid, program, NULL, NULL, argv, env));
		expect_child(pid);
		pid = vfork();
		if (pid == 0) {
			execve(program, argv, env);
			_exit(1);
		}
		expect_child(pid);
		IN_CHILD(pid)
		{
			execve(program, argv, env);
			_exit(1);
		}
		expect_child(pid);
		CHECK(system("true") == 0);
		f = popen("echo hello", "r");
		CHECK(f && fgets(line, sizeof(line), f) && strcmp(line, "hello\n") == 0);
		CHECK(pclose(f) == 0);
		IN_CHILD(pid)
		{
			CHECK(system("true") == 0);
			f = popen("cat >/dev/null", "w");
			CHECK(f && fputs("x", f) >= 0);
			CHECK(pclose(f) == 0);
		}
		expect_child(pid);
	}
	arena_null(a);
}

static void test_spawn(void **state)
{
	uffd_run(*state, do_spawn, NULL);
}

/* ---- the handlers of others ---------------------------------------------------------------------- */

static uint64_t *prepared, *in_parent, *in_the_child;

static void others_prepare(void)
{
	int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

	*prepared += (uint64_t)write(fd, prepared, 8);
	close(fd);
}

static void others_parent(void)
{
	++*in_parent;
}

static void others_child(void)
{
	char *p = malloc(100);

	++*in_the_child;
	memset(p, 1, 100);
	free(p);
}

static void do_handlers(struct test_daemon *d, void *arg)
{
	uint64_t *later[3];
	arena_t *a;
	pid_t pid;

	(void)arg;
	/* Before the library's own, so that their prepare handlers come after it. */
	prepared = in_parent = in_the_child = NULL;
	CHECK_OK(pthread_atfork(others_prepare, others_parent, others_child));
	a = heap_begin(d);
	for (int i = 0; i < 3; i++)
		later[i] = calloc(1, PAGE);
	prepared = later[0], in_parent = later[1], in_the_child = later[2];
	CHECK_OK(pthread_atfork(others_prepare, others_parent, others_child));
	for (uint64_t i = 0; i < 20; i++) {
		IN_CHILD(pid)
		{
			CHECK(*prepared == 16 * (i + 1) && *in_parent == 2 * i);
			CHECK(*in_the_child == 2);
			IN_CHILD(pid) CHECK(*in_the_child == 4);
			expect_child(pid);
			CHECK(*prepared == 16 * (i + 2) && *in_parent == 2 * i + 2);
		}
		expect_child(pid);
		CHECK(*prepared == 16 * (i + 1) && *in_parent == 2 * (i + 1) && !*in_the_child);
	}
	CHECK_OK(arena_null(a));
}

static void test_handlers(void **state)
{
	uffd_run(*state, do_handlers, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		daemon_test(test_files),
		daemon_test(test_threads),
		daemon_test(test_spawn),
		daemon_test(test_handlers),
	};

	return cmocka_run_group_tests(tests, uffd_group_setup, daemon_group_teardown);
}

#endif
