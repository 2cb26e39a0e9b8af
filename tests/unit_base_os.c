/* SPDX-License-Identifier: MIT */
/* os: seals and read-only reopening of memfds, mappings and reservations, futex, eventfd, pidfd. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/os.h"
#include "base/util.h"

#define PAGE 4096
#define MIB (UINT64_C(1) << 20)

static void test_memfd_is_sealed(void **state)
{
	int fd = os_memfd("test", 4 * MIB);
	struct stat st;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 4 * MIB);
	assert_int_equal(st.st_mode & 07777, 0400);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(ftruncate(fd, MIB), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(ftruncate(fd, 8 * MIB), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	assert_int_equal(errno, EPERM);
	close(fd);
	assert_int_equal(os_memfd("test", UINT64_MAX), -EFBIG);
}

static void test_readonly_cannot_write(void **state)
{
	int fd = os_memfd("test", MIB);
	int ro = os_reopen_readonly(fd);
	void *p, *q;

	(void)state;
	assert_true(ro >= 0);
	assert_int_equal(os_map(ro, 0, MIB, OS_MAP_WRITE, &p), -EACCES);
	assert_int_equal(os_map(ro, 0, MIB, OS_MAP_READ | OS_MAP_POPULATE, &p), 0);
	assert_int_equal(os_protect(p, MIB, OS_MAP_READ | OS_MAP_WRITE), -EACCES);
	assert_int_equal(os_punch_hole(ro, 0, PAGE), -EBADF);

	/* It is the same file. */
	assert_int_equal(os_map(fd, 0, MIB, OS_MAP_WRITE, &q), 0);
	strcpy((char *)q + PAGE, "seen");
	assert_string_equal((char *)p + PAGE, "seen");
	os_unmap(p, MIB);
	os_unmap(q, MIB);
	close(ro);
	close(fd);
	assert_int_equal(os_reopen_readonly(-1), -EBADF);
	assert_int_equal(os_reopen_readonly(fd), -ENOENT);
}

static void test_punch_hole_zeroes(void **state)
{
	int fd = os_memfd("test", MIB);
	uint64_t full, less;
	unsigned char *p;

	(void)state;
	assert_int_equal(os_map(fd, 0, MIB, OS_MAP_WRITE, (void **)&p), 0);
	assert_int_equal(os_file_backed(fd, &full), 0);
	assert_int_equal(full, 0);
	memset(p, 0xaa, MIB);
	assert_int_equal(os_file_backed(fd, &full), 0);
	assert_int_equal(full, MIB);
	assert_int_equal(os_punch_hole(fd, PAGE, 2 * PAGE), 0);
	assert_int_equal(os_file_backed(fd, &less), 0);
	assert_int_equal(less, MIB - 2 * PAGE);
	assert_int_equal(p[PAGE - 1], 0xaa);
	assert_int_equal(p[PAGE], 0);
	assert_int_equal(p[3 * PAGE - 1], 0);
	assert_int_equal(p[3 * PAGE], 0xaa);
	os_unmap(p, MIB);
	close(fd);
}

static void test_huge_map_is_aligned(void **state)
{
	int fd = os_memfd("test", 6 * MIB);
	uint64_t backed;
	void *p[4];

	(void)state;
	/* Several, as the first might be aligned by luck. */
	for (size_t i = 0; i < ARRAY_SIZE(p); i++) {
		assert_int_equal(
			os_map(fd, 0, 6 * MIB - i * PAGE, OS_MAP_WRITE | OS_MAP_HUGE, &p[i]), 0);
		assert_true(IS_ALIGNED((uintptr_t)p[i], 2 * MIB));
	}
	assert_int_equal(os_populate(p[0], 6 * MIB), 0);
	assert_int_equal(os_file_backed(fd, &backed), 0);
	assert_int_equal(backed, 6 * MIB);
	*(volatile char *)p[0] = 5;
	assert_int_equal(*(volatile char *)p[3], 5);
	for (size_t i = 0; i < ARRAY_SIZE(p); i++)
		assert_int_equal(os_unmap(p[i], 6 * MIB - i * PAGE), 0);
	close(fd);
}

/* Is the whole 2 MiB at `addr` one entry of the host's page table? -1: cannot tell. */
static int mapped_huge(const void *addr)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long start, end, kib;
	bool inside = false;
	int huge = -1;
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (uintptr_t)addr && (uintptr_t)addr < end;
		else if (inside && sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1)
			huge = kib >= 2048;
	}
	if (f)
		fclose(f);
	return huge;
}

static void test_hugepages(void **state)
{
	int fd;
	void *p;

	(void)state;
	if (!os_hugepages_available())
		skip();
	fd = os_memfd("test", 2 * MIB);
	assert_int_equal(os_map(fd, 0, 2 * MIB, OS_MAP_WRITE | OS_MAP_HUGE | OS_MAP_POPULATE, &p),
			 0);
	assert_int_not_equal(mapped_huge(p), 0);
	os_unmap(p, 2 * MIB);
	close(fd);
}

static void test_reserve_and_map_fixed(void **state)
{
	int fd = os_memfd("test", MIB);
	char *base, *at;
	void *p;

	(void)state;
	assert_int_equal(os_reserve(NULL, 16 * MIB, false, (void **)&base), 0);
	assert_int_equal(os_reserve(base + MIB, PAGE, false, &p), -EEXIST);

	at = base + 2 * MIB;
	assert_int_equal(
		os_map_fixed(at, MIB, fd, 0,
			     OS_MAP_READ | OS_MAP_WRITE | OS_MAP_POPULATE | OS_MAP_DONTFORK),
		0);
	strcpy(at + PAGE, "frame one");
	assert_int_equal(os_map_fixed(at, PAGE, fd, PAGE, OS_MAP_READ), 0);
	assert_string_equal(at, "frame one");
	assert_int_equal(os_protect(at, PAGE, OS_MAP_READ | OS_MAP_WRITE), 0);
	at[0] = 'F';
	assert_string_equal(at + PAGE, "Frame one");

	assert_int_equal(os_reserve(at, MIB, true, &p), 0);
	assert_ptr_equal(p, at);
	assert_int_equal(msync(at, PAGE, MS_ASYNC), 0);
	assert_int_equal(os_unmap(base, 16 * MIB), 0);
	assert_int_equal(os_reserve(at, MIB, false, &p), 0);
	assert_ptr_equal(p, at);
	os_unmap(at, MIB);
	close(fd);
}

/* What a signal says of an access to the byte at `addr`, in a child. */
static int access_signal(volatile char *addr, bool write)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		if (write)
			*addr = 1;
		else
			(void)*addr;
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void test_rights_and_fork(void **state)
{
	int fd = os_memfd("test", MIB);
	char *base;
	void *p;

	(void)state;
	assert_int_equal(os_map(fd, 0, MIB, OS_MAP_WRITE, &p), 0);
	assert_int_equal(access_signal(p, true), 0);
	os_protect(p, MIB, OS_MAP_READ);
	assert_int_equal(access_signal(p, true), SIGSEGV);
	assert_int_equal(access_signal(p, false), 0);
	os_protect(p, MIB, 0);
	assert_int_equal(access_signal(p, false), SIGSEGV);
	os_unmap(p, MIB);

	/* A DONTFORK mapping is not there in the child, nor is a reservation. */
	assert_int_equal(os_map(fd, 0, MIB, OS_MAP_WRITE | OS_MAP_DONTFORK, &p), 0);
	assert_int_equal(access_signal(p, false), SIGSEGV);
	os_unmap(p, MIB);
	assert_int_equal(os_reserve(NULL, MIB, false, (void **)&base), 0);
	assert_int_equal(os_protect(base, MIB, OS_MAP_READ), 0);
	assert_int_equal(access_signal(base, false), SIGSEGV);
	os_unmap(base, MIB);
	close(fd);
}

struct futex_test {
	uint32_t word;
	int woken;
};

static void *waker(void *arg)
{
	struct futex_test *f = arg;

	store_release(&f->word, 1);
	f->woken = os_futex_wake(&f->word, 1);
	return NULL;
}

static void test_futex(void **state)
{
	struct futex_test f = {0};
	uint64_t before = clock_now();
	pthread_t thread;

	(void)state;
	assert_int_equal(os_futex_wait(&f.word, 1, 0), -EAGAIN);
	assert_int_equal(os_futex_wait(&f.word, 0, 2 * NSEC_PER_MSEC), -ETIMEDOUT);
	assert_true(clock_now() - before >= 2 * NSEC_PER_MSEC);
	assert_int_equal(os_futex_wake(&f.word, 1), 0);

	assert_int_equal(pthread_create(&thread, NULL, waker, &f), 0);
	while (!load_acquire(&f.word)) {
		int r = os_futex_wait(&f.word, 0, 0);

		assert_true(r == 0 || r == -EAGAIN || r == -EINTR);
	}
	pthread_join(thread, NULL);
	assert_true(f.woken == 0 || f.woken == 1);
}

/* The word is keyed by the file, not by the process. */
static void test_futex_between_processes(void **state)
{
	int fd = os_memfd("test", PAGE);
	uint32_t *mine, *theirs;
	int status;
	pid_t pid;

	(void)state;
	assert_int_equal(os_map(fd, 0, PAGE, OS_MAP_WRITE, (void **)&mine), 0);
	pid = fork();
	if (pid == 0) {
		if (os_map(fd, 0, PAGE, OS_MAP_WRITE, (void **)&theirs))
			_exit(1);
		store_release(theirs, 1);
		while (os_futex_wake(theirs, 1) != 1 && load_acquire(theirs) == 1)
			sched_yield();
		_exit(0);
	}
	while (!load_acquire(mine))
		sched_yield();
	while (os_futex_wait(mine, 1, 0) == -EINTR)
		;
	store_release(mine, 2);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	os_unmap(mine, PAGE);
	close(fd);
}

static void test_eventfd(void **state)
{
	int fd = os_eventfd();
	uint64_t count;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(os_eventfd_drain(fd), 0);
	assert_int_equal(os_eventfd_ring(fd), 0);
	assert_int_equal(os_eventfd_ring(fd), 0);
	assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
	assert_int_equal(count, 2);
	count = UINT64_MAX - 1;
	assert_int_equal(write(fd, &count, sizeof(count)), sizeof(count));
	assert_int_equal(os_eventfd_ring(fd), 0);
	assert_int_equal(os_eventfd_drain(fd), 0);
	assert_int_equal(read(fd, &count, sizeof(count)), -1);
	assert_int_equal(errno, EAGAIN);
	close(fd);
	assert_int_equal(os_eventfd_ring(-1), -EBADF);
	assert_int_equal(os_eventfd_drain(-1), -EBADF);
}

static void test_pidfd(void **state)
{
	int hold[2], fd;
	pid_t pid;
	char c;

	(void)state;
	assert_int_equal(pipe(hold), 0);
	pid = fork();
	if (pid == 0) {
		close(hold[1]);
		_exit(read(hold[0], &c, 1) != 0);
	}
	fd = os_pidfd_open(pid);
	assert_true(fd >= 0);
	assert_true(os_pid_alive(fd));
	/* Started after us or in the same tick, and it stays the same. */
	assert_true(os_process_start(getpid()) > 0);
	assert_true(os_process_start(pid) >= os_process_start(getpid()));
	assert_int_equal(os_process_start(pid), os_process_start(pid));
	close(hold[1]);
	close(hold[0]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_false(os_pid_alive(fd));
	assert_int_equal(os_process_start(pid), 0);
	close(fd);
	assert_int_equal(os_pidfd_open(pid), -ESRCH);
}

static void test_host(void **state)
{
	(void)state;
	assert_int_equal(os_page_size(), PAGE);
	assert_true(os_nr_cpus() >= 1);
	assert_true(os_current_cpu() < os_nr_cpus());
	assert_true(os_memory_available() > MIB);
	assert_true(os_max_map_count() > 0);
}

static void test_output(void **state)
{
	static const char *const echo[] = {"/bin/sh", "-c", "echo one; echo two >&2; exit 3", NULL};
	static const char *const killed[] = {"/bin/sh", "-c", "kill -9 $$", NULL};
	static const char *const hangs[] = {"/bin/sh", "-c", "echo here; exec sleep 100", NULL};
	static const char *const endless[] = {"/bin/sh", "-c", "exec yes", NULL};
	static const char *const none[] = {"/nonexistent", NULL};
	/* What is blocked here is not blocked there. */
	static const char *const stops[] = {"/bin/sh", "-c", "kill $$; echo survived", NULL};
	uint64_t begin = clock_now();
	sigset_t set, old;
	char text[16];

	(void)state;
	assert_int_equal(os_output(echo, 10000, text, sizeof(text)), 3);
	assert_string_equal(text, "one\ntwo\n");
	assert_int_equal(os_output(echo, 10000, text, 3), 3);
	assert_string_equal(text, "on");
	assert_int_equal(os_output(killed, 10000, text, sizeof(text)), 128 + SIGKILL);
	assert_string_equal(text, "");
	assert_int_equal(os_output(none, 10000, text, sizeof(text)), -ENOENT);
	assert_true(clock_now() - begin < 10 * NSEC_PER_SEC);
	assert_int_equal(os_output(hangs, 200, text, sizeof(text)), -ETIMEDOUT);
	assert_int_equal(os_output(endless, 200, text, sizeof(text)), -ETIMEDOUT);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &old);
	assert_int_equal(os_output(stops, 10000, text, sizeof(text)), 128 + SIGTERM);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memfd_is_sealed),
		cmocka_unit_test(test_readonly_cannot_write),
		cmocka_unit_test(test_punch_hole_zeroes),
		cmocka_unit_test(test_huge_map_is_aligned),
		cmocka_unit_test(test_hugepages),
		cmocka_unit_test(test_reserve_and_map_fixed),
		cmocka_unit_test(test_rights_and_fork),
		cmocka_unit_test(test_futex),
		cmocka_unit_test(test_futex_between_processes),
		cmocka_unit_test(test_eventfd),
		cmocka_unit_test(test_pidfd),
		cmocka_unit_test(test_output),
		cmocka_unit_test(test_host),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
