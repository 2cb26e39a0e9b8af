/* SPDX-License-Identifier: MIT */
/*
 * preload_program.c - a program that knows nothing of arenad, and expects what Linux promises. It is
 * run on the kernel's memory, where it must pass, and on the arena's (tests/preload.sh).
 *
 * preload_program [calls|files] PART...    `calls`: system calls on untouched memory work
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/preload_parts.h"

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static bool calls; /* system calls fault */
static char *self;

static bool is_zero(const char *p, size_t len)
{
	return len == 0 || (p[0] == 0 && memcmp(p, p + 1, len - 1) == 0);
}

static char *map(size_t len, int flags)
{
	char *p = mmap(NULL, len, RW, flags, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static int status_of(pid_t pid)
{
	int status;

	CHECK(pid > 0);
	while (waitpid(pid, &status, 0) < 0)
		CHECK(errno == EINTR);
	return status;
}

/* ---- malloc ---------------------------------------------------------------------------------- */

static void check_block(char *p, size_t size, size_t align)
{
	CHECK(p && (uintptr_t)p % align == 0);
	CHECK(malloc_usable_size(p) >= size);
	memset(p, 0x5a, size);
}

static void part_malloc(void)
{
	static const size_t sizes[] = {1, 24, 100, 4096, 70000, 2 * MB + 1, 5 * MB};
	volatile size_t huge = SIZE_MAX / 2; /* the compiler need not know */
	char *text = NULL, *line = NULL, *p;
	size_t size = 0;
	void *q;
	FILE *f;

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		size_t n = sizes[i];

		check_block(p = malloc(n), n, 16);
		q = realloc(p, 2 * n);
		CHECK(q && ((char *)q)[0] == 0x5a && ((char *)q)[n - 1] == 0x5a);
		free(q);
		p = calloc(n, 1);
		CHECK(p && is_zero(p, n));
		free(p);
		CHECK(posix_memalign(&q, 8192, n) == 0);
		check_block(q, n, 8192);
		free(q);
		check_block(p = aligned_alloc(64, n), n, 64);
		free(p);
		check_block(p = memalign(2 * MB, n), n, 2 * MB);
		free(p);
		check_block(p = valloc(n), n, PAGE);
		free(p);
		check_block(p = pvalloc(n), n, PAGE);
		free(p);
		check_block(p = reallocarray(NULL, n, 3), 3 * n, 16);
		free(p);
	}
	free(NULL);
	CHECK(malloc_usable_size(NULL) == 0);
	errno = 0;
	p = reallocarray(NULL, huge, 3);
	CHECK(!p && errno == ENOMEM);
	p = calloc(huge, 3);
	CHECK(!p);
	p = malloc(huge);
	CHECK(!p);
	CHECK(posix_memalign(&q, 24, 8) == EINVAL);
	malloc_trim(0);
	/* What the C library allocates and the program frees, or grows. */
	CHECK(asprintf(&text, "%0*d", 5000, 1) == 5000 && strlen(text) == 5000);
	q = realloc(text, 100000);
	CHECK(q);
	text = q;
	CHECK(text[4999] == '1');
	p = strdup(text);
	CHECK(p && strcmp(p, text) == 0);
	free(text);
	free(p);
	f = open_memstream(&text, &size);
	CHECK(f && fprintf(f, "one\ntwo\n") == 8 && fclose(f) == 0 && size == 8);
	f = fmemopen(text, size, "r");
	line = malloc(1);
	size = 1;
	CHECK(f && getline(&line, &size, f) == 4 && strcmp(line, "one\n") == 0);
	fclose(f);
	free(line);
	free(text);
}

/* ---- mmap and its kin -------------------------------------------------------------------------- */

static sigjmp_buf after_fault;
static void *volatile fault_address;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	fault_address = info->si_addr;
	siglongjmp(after_fault, 1);
}

static bool faults(volatile char *p, bool write)
{
	struct sigaction act = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, segv, bus;
	volatile bool fault = true;

	sigaction(SIGSEGV, &act, &segv);
	sigaction(SIGBUS, &act, &bus);
	if (sigsetjmp(after_fault, 1) == 0) {
		if (write)
			*p = 1;
		else
			(void)*p;
		fault = false;
	}
	sigaction(SIGSEGV, &segv, NULL);
	sigaction(SIGBUS, &bus, NULL);
	CHECK(!fault || fault_address == (void *)p);
	return fault;
}

static void part_mmap(void)
{
	char *p = map(8 * MB, ANON), *q;
	unsigned char vec[4];

	CHECK(is_zero(p, 8 * MB));
	fill(p, 8 * MB, 1);
	/* A hole, a mapping in it, one beside it. */
	CHECK(munmap(p + 2 * MB, 2 * MB) == 0 && faults(p + 2 * MB, false));
	CHECK(mmap(p + 3 * MB, MB, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == p + 3 * MB);
	CHECK(mmap(p + MB, MB, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED &&
	      errno == EEXIST);
	CHECK(is_zero(p + 3 * MB, MB) && holds(p, 2 * MB, 1));
	q = mmap(p, 16 * PAGE, RW, ANON | MAP_FIXED, -1, 0);
	CHECK(q == p && is_zero(p, 16 * PAGE));
	/* Rights. */
	fill(p, 16 * PAGE, 2);
	CHECK(mprotect(p, 16 * PAGE, PROT_NONE) == 0 && faults(p, false));
	CHECK(mprotect(p, 16 * PAGE, PROT_READ) == 0 && faults(p, true) && holds(p, 16 * PAGE, 2));
	CHECK(mprotect(p, 16 * PAGE, RW) == 0 && !faults(p, true));
	CHECK(mprotect(p + MB, 2 * MB, RW) == -1 && errno == ENOMEM);
	CHECK(mprotect(p + 1, PAGE, RW) == -1 && errno == EINVAL);
	/* Advice. */
	CHECK(madvise(p, 16 * PAGE, MADV_DONTNEED) == 0 && is_zero(p, 16 * PAGE));
	CHECK(madvise(p, 16 * PAGE, 12345) == -1 && errno == EINVAL);
	CHECK(madvise(p, 16 * PAGE, MADV_FREE) == 0 && madvise(p, PAGE, MADV_DONTDUMP) == 0);
	CHECK(posix_madvise(p, PAGE, POSIX_MADV_WILLNEED) == 0);
	CHECK(posix_madvise(p, PAGE, POSIX_MADV_DONTNEED) == 0);
	CHECK(msync(p, PAGE, MS_SYNC) == 0 && msync(p + 2 * MB, PAGE, MS_ASYNC) == -1);
	CHECK(errno == ENOMEM);
	/* In core. */
	p[0] = 1;
	CHECK(mincore(p, PAGE, vec) == 0 && (vec[0] & 1));
	CHECK(mincore(p + 2 * MB, PAGE, vec) == -1 && errno == ENOMEM);
	CHECK(mlock(p, 4 * PAGE) == 0 && mincore(p, 4 * PAGE, vec) == 0 && (vec[3] & 1));
	CHECK(munlock(p, 4 * PAGE) == 0 && mlock(p + 2 * MB, PAGE) == -1 && errno == ENOMEM);
	CHECK(munmap(p, 8 * MB) == 0);
	CHECK(munmap(p, 8 * MB) == 0 && munmap(p, 0) == -1 && errno == EINVAL);
	CHECK(mmap(NULL, 0, RW, ANON, -1, 0) == MAP_FAILED && errno == EINVAL);
	/* What nobody has an address for. */
	p = mmap(NULL, 1ul << 40, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
	CHECK(p != MAP_FAILED && mprotect(p + (1ul << 39), MB, RW) == 0);
	fill(p + (1ul << 39), MB, 3);
	CHECK(holds(p + (1ul << 39), MB, 3) && munmap(p, 1ul << 40) == 0);
}

/* Growing may fail for want of room; it must not lose anything. */
static void part_mremap(void)
{
	char *p = map(4 * MB, ANON), *q;
	size_t len = 6 * MB;

	fill(p, 4 * MB, 4);
	q = mremap(p, 4 * MB, 2 * MB, 0);
	CHECK(q == p && holds(p, 2 * MB, 4) && faults(p + 2 * MB, false));
	q = mremap(p, 2 * MB, 6 * MB, MREMAP_MAYMOVE);
	if (q == MAP_FAILED) {
		CHECK(errno == ENOMEM && holds(p, 2 * MB, 4));
		q = p;
		len = 2 * MB;
	} else {
		CHECK(holds(q, 2 * MB, 4) && is_zero(q + 2 * MB, 4 * MB));
	}
	CHECK(mremap(q + 1, PAGE, PAGE, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(munmap(q, len) == 0);
}

static void part_file(void)
{
	char name[] = "/tmp/preload_program.XXXXXX", *p, *q;
	int fd = mkstemp(name);

	CHECK(fd >= 0 && unlink(name) == 0 && ftruncate(fd, 3 * (off_t)MB) == 0);
	q = mmap(NULL, 3 * MB, RW, MAP_SHARED, fd, 0);
	CHECK(q != MAP_FAILED);
	fill(q, 3 * MB, 5);
	CHECK(msync(q, 3 * MB, MS_SYNC) == 0);
	/* Into a reservation. */
	p = map(8 * MB, ANON);
	fill(p, 8 * MB, 6);
	CHECK(mmap(p + MB, 2 * MB, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, MB) == p + MB);
	CHECK(memcmp(p + MB, q + MB, 2 * MB) == 0 && faults(p + MB, true));
	CHECK(holds(p, MB, 6));
	CHECK(mmap(p + MB, 2 * MB, RW, MAP_PRIVATE | MAP_FIXED, fd, 2 * MB) == p + MB);
	CHECK(memcmp(p + MB, q + 2 * MB, MB) == 0 && faults(p + 2 * MB, false));
	p[MB] = 77;
	CHECK(q[2 * MB] != 77);
	CHECK(mmap(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 999, 0) == MAP_FAILED);
	CHECK(errno == EBADF && holds(p, MB, 6));
	CHECK(munmap(p, 8 * MB) == 0 && munmap(q, 3 * MB) == 0 && close(fd) == 0);
}

static void part_syscall(void)
{
	char *p = (char *)syscall(SYS_mmap, NULL, 4 * MB, RW, ANON, -1, 0);
	char *brk0 = sbrk(0);

	CHECK(p != MAP_FAILED);
	fill(p, 4 * MB, 7);
	CHECK(syscall(SYS_mprotect, p, MB, PROT_READ) == 0 && faults(p, true));
	CHECK(syscall(SYS_madvise, p + MB, MB, MADV_DONTNEED) == 0 && is_zero(p + MB, MB));
	CHECK(syscall(SYS_munmap, p + 3 * MB, MB) == 0 && faults(p + 3 * MB, false));
	CHECK((char *)syscall(SYS_mremap, p, 3 * MB, 2 * MB, 0, 0) == p && holds(p, MB, 7));
	CHECK(syscall(SYS_mlock, p, PAGE) == 0 && syscall(SYS_munlock, p, PAGE) == 0);
	CHECK(syscall(SYS_munmap, p, 2 * MB) == 0 && faults(p, false));
	CHECK(syscall(SYS_mmap, NULL, 0, RW, ANON, -1, 0) == -1 && errno == EINVAL);
	CHECK(syscall(SYS_close, 9999) == -1 && errno == EBADF);
	CHECK(brk0 != (void *)-1 && sbrk(3 * PAGE) == brk0 && sbrk(0) == brk0 + 3 * PAGE);
	fill(brk0, 3 * PAGE, 8);
	CHECK((char *)syscall(SYS_brk, brk0 + PAGE) == brk0 + PAGE && brk(brk0 + 2 * PAGE) == 0);
	CHECK(holds(brk0, PAGE, 8) && is_zero(brk0 + PAGE, PAGE) && brk(brk0) == 0);
}

/* System calls on untouched memory: into the heap, into mappings, from them. */
static void part_calls(void)
{
	int pair[2], fd = open("/dev/zero", O_RDONLY);
	char *p = map(4 * MB, ANON);
	char *q = malloc(5 * MB);

	if (!calls)
		return;
	CHECK(fd >= 0 && read(fd, p, 4 * MB) > 0 && pread(fd, q, 5 * MB, 0) > 0 && close(fd) == 0);
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	free(q);
	CHECK(munmap(p, 4 * MB) == 0);
	p = map(4 * MB, ANON);
	CHECK(write(pair[0], p + MB, 1000) == 1000);
	CHECK(recv(pair[1], p + 2 * MB - 500, 1000, 0) == 1000 && is_zero(p + 2 * MB - 500, 1000));
	/* Not mapped, not permitted. */
	CHECK(mprotect(p, PAGE, PROT_READ) == 0 && write(pair[0], p, 10) == 10);
	CHECK(recv(pair[1], p, 10, 0) == -1 && errno == EFAULT);
	CHECK(munmap(p, 4 * MB) == 0 && write(pair[0], p, 10) == -1 && errno == EFAULT);
	close(pair[0]);
	close(pair[1]);
}

/* ---- descriptors ------------------------------------------------------------------------------ */

static void still_works(unsigned seed)
{
	char *p = map(8 * MB, ANON);
	pid_t pid;

	fill(p, 8 * MB, seed);
	CHECK(holds(p, 8 * MB, seed));
	pid = fork();
	if (pid == 0) {
		CHECK(holds(p, 8 * MB, seed));
		fill(p, 8 * MB, seed + 1);
		_exit(holds(p, 8 * MB, seed + 1) ? 0 : 1);
	}
	CHECK(status_of(pid) == 0 && holds(p, 8 * MB, seed));
	CHECK(munmap(p, 8 * MB) == 0);
}

static void part_close(void)
{
	struct rlimit limit;
	int fd, high, nr = 0;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	for (fd = 3; fd < (int)limit.rlim_cur && fd < 70000; fd++)
		close(fd);
	still_works(20);
	CHECK(close_range(3, ~0u, 0) == 0);
	still_works(21);
	closefrom(3);
	CHECK(syscall(SYS_close_range, 3, ~0u, 0) == 0);
	still_works(22);
	/* Numbers of the program's own choice, all it may have. */
	fd = open("/dev/null", O_RDWR);
	CHECK(fd == 3);
	for (high = 4; high < (int)limit.rlim_cur && high < 8192; high++)
		nr += dup2(fd, high) != high;
	CHECK(nr < 10);
	still_works(23);
	closefrom(3);
	still_works(24);
}

/* ---- processes -------------------------------------------------------------------------------- */

static volatile int stop;

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!stop) {
		size_t n = (size_t)rand_r(&seed) % 20000 + 1;
		char *p = malloc(n), *q;
		FILE *f = fopen("/dev/null", "w");

		CHECK(p && f && fprintf(f, "%zu", n) > 0 && fclose(f) == 0);
		memset(p, (int)seed, n);
		q = mmap(NULL, 64 * PAGE, RW, ANON, -1, 0);
		CHECK(q != MAP_FAILED);
		q[0] = p[n - 1];
		CHECK(munmap(q, 64 * PAGE) == 0);
		free(p);
	}
	return NULL;
}

static char *before_fork;
static int nr_handlers;

static void prepare(void)
{
	before_fork = malloc(100);
	CHECK(before_fork);
	strcpy(before_fork, "prepared");
	nr_handlers++;
}

static void after(void)
{
	CHECK(strcmp(before_fork, "prepared") == 0);
	free(before_fork);
	free(malloc(100000));
}

/* Two children in each generation; a child goes on as the next one's parent. */
static void descend(int generations, int *shared, char *p, size_t len)
{
again:
	__atomic_fetch_add(shared, 1, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; generations && i < 2; i++) {
		unsigned seed = (unsigned)generations * 16 + i;
		pid_t pid;

		fill(p, len, seed);
		pid = fork();
		if (pid == 0) {
			CHECK(holds(p, len, seed));
			generations--;
			goto again;
		}
		CHECK(status_of(pid) == 0 && holds(p, len, seed));
	}
	_exit(0);
}

static int in_clone(void *arg)
{
	char *p = malloc(MB);

	CHECK(p && strcmp(arg, "argument") == 0);
	fill(p, MB, 9);
	return holds(p, MB, 9) ? 7 : 1;
}

static void part_fork(void)
{
	size_t len = 3 * MB;
	char *p = malloc(len);
	int *shared = (int *)(void *)map(MB, MAP_SHARED | MAP_ANONYMOUS);
	pthread_t threads[2];
	char *stack;
	FILE *f;
	pid_t pid;

	CHECK(p);
	pid = fork();
	if (pid == 0)
		descend(3, shared, p, len);
	CHECK(status_of(pid) == 0 && *shared == 1 + 2 + 4 + 8);
	/* From a program with threads that allocate, with a stream open and handlers registered. */
	CHECK(pthread_atfork(prepare, after, after) == 0);
	f = fopen("/etc/passwd", "r");
	CHECK(f && fgetc(f) != EOF);
	fill(p, len, 10);
	for (uintptr_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
	for (int i = 0; i < 5; i++) {
		pid = fork();
		if (pid == 0) {
			CHECK(holds(p, len, 10) && fgetc(f) != EOF);
			fill(p, len, 11);
			fclose(f);
			f = fopen("/etc/passwd", "r");
			exit(holds(p, len, 11) && f ? 0 : 1);
		}
		CHECK(status_of(pid) == 0 && holds(p, len, 10));
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(nr_handlers == 5);
	fclose(f);
	/* By other ways; the stack is memory like any. */
	pid = (pid_t)syscall(SYS_fork);
	if (pid == 0)
		_exit(holds(p, len, 10) ? 0 : 1);
	CHECK(status_of(pid) == 0);
	stack = malloc(MB);
	CHECK(stack);
	pid = clone(in_clone, stack + MB, SIGCHLD, "argument");
	CHECK(WEXITSTATUS(status_of(pid)) == 7);
	pid = vfork();
	if (pid == 0)
		_exit(0);
	CHECK(status_of(pid) == 0 && holds(p, len, 10));
	free(p);
	free(stack);
}

static void *nothing(void *arg)
{
	return arg;
}

static void *make_threads(void *arg)
{
	pthread_t thread;

	while (!stop) {
		CHECK(pthread_create(&thread, NULL, nothing, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
	}
	return arg;
}

/* Threads that begin while another forks: whom it made wait goes on. */
static void part_begin(void)
{
	pthread_t threads[2];
	pid_t pid;

	stop = 0;
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, make_threads, NULL) == 0);
	for (int i = 0; i < 40; i++) {
		pid = fork();
		if (pid == 0)
			_exit(0);
		CHECK(status_of(pid) == 0);
	}
	stop = 1;
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

static void part_exec(void)
{
	char *argv[] = {self, calls ? "calls" : "plain", "malloc", "mmap", NULL};
	extern char **environ;
	pid_t pid;

	CHECK(posix_spawn(&pid, self, NULL, NULL, argv, environ) == 0 && status_of(pid) == 0);
	pid = fork();
	if (pid == 0) {
		execv(self, argv);
		_exit(127);
	}
	CHECK(status_of(pid) == 0);
	CHECK(system("test $(echo 1 2 3 | wc -w) -eq 3") == 0);
}

static void *late(void *arg)
{
	usleep(20000);
	__atomic_fetch_add((int *)arg, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* A process ends with its last thread, which need not be the first. */
static void part_threads(void)
{
	int *shared = (int *)(void *)map(PAGE, MAP_SHARED | MAP_ANONYMOUS);
	pid_t pid = fork();

	if (pid == 0) {
		pthread_t threads[8];

		for (int i = 0; i < 8; i++)
			CHECK(pthread_create(&threads[i], NULL, late, shared) == 0);
		CHECK(pthread_detach(threads[3]) == 0);
		pthread_exit(NULL);
	}
	CHECK(status_of(pid) == 0 && *shared == 8);
	CHECK(munmap(shared, PAGE) == 0);
}

/* Another user, after the beginning: memory it has, memory it gets. */
static void part_setuid(void)
{
	char *p = map(4 * MB, ANON);
	pid_t pid;

	if (geteuid() != 0)
		return;
	fill(p, MB, 12);
	pid = fork();
	if (pid == 0) {
		CHECK(setgid(65534) == 0 && setuid(65534) == 0);
		CHECK(holds(p, MB, 12));
		fill(p, 4 * MB, 13);
		free(malloc(10 * MB));
		_exit(holds(p, 4 * MB, 13) ? 0 : 1);
	}
	CHECK(status_of(pid) == 0);
	CHECK(munmap(p, 4 * MB) == 0);
}

static volatile sig_atomic_t nr_alarms;
static char *alarm_memory;

static void on_alarm(int sig)
{
	(void)sig;
	alarm_memory[(nr_alarms * 37 % 1024) * 4096]++;
	nr_alarms++;
}

/* Handlers that fault, whatever they interrupt. */
static void part_signals(void)
{
	struct itimerval every = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	unsigned seed = 1;

	alarm_memory = map(4 * MB, ANON);
	CHECK(sigaction(SIGALRM, &act, NULL) == 0 && setitimer(ITIMER_REAL, &every, NULL) == 0);
	for (int i = 0; i < 1000 || nr_alarms < 50; i++) {
		size_t n = (size_t)rand_r(&seed) % MB + PAGE;
		char *p = mmap(NULL, n, RW, ANON, -1, 0);

		CHECK(p != MAP_FAILED);
		p[n - 1] = 1;
		free(malloc(n));
		if (nr_alarms % 8 == 0)
			CHECK(madvise(alarm_memory, 4 * MB, MADV_DONTNEED) == 0);
		CHECK(munmap(p, n) == 0);
	}
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	signal(SIGALRM, SIG_DFL);
	CHECK(munmap(alarm_memory, 4 * MB) == 0);
}

static const struct part parts[] = {
	{"malloc", part_malloc},   {"mmap", part_mmap},       {"mremap", part_mremap},
	{"file", part_file},       {"calls", part_calls},     {"syscall", part_syscall},
	{"signals", part_signals}, {"fork", part_fork},       {"exec", part_exec},
	{"begin", part_begin},     {"threads", part_threads}, {"setuid", part_setuid},
	{"close", part_close},
};

int main(int argc, char **argv)
{
	self = argv[0];
	calls = argc > 1 && strcmp(argv[1], "calls") == 0;
	run_parts(parts, sizeof(parts) / sizeof(*parts), argc, argv, 2);
	return 0;
}
