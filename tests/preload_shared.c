/* SPDX-License-Identifier: MIT */
/*
 * preload_shared.c - a program that knows nothing of arenad and shares memory by name: POSIX and System V. It is run
 * on the kernel's memory, where it must pass, and on the arena's (tests/preload_shared.sh).
 *
 * preload_shared [PART]...; "other-posix NAME" and "other-sysv KEY" are what it starts as unrelated processes.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/preload_parts.h"

#define FAILS(x, error) CHECK((errno = 0, (x)) == -1 && errno == (error))
#define NO_MAP(x, error) CHECK((errno = 0, (x)) == MAP_FAILED && errno == (error))

extern char **environ;
static char *self;

static void run_other(const char *part, const char *name)
{
	char *args[] = {self, (char *)(uintptr_t)part, (char *)(uintptr_t)name, NULL};
	pid_t pid;

	CHECK(posix_spawn(&pid, self, NULL, NULL, args, environ) == 0);
	ends_well(pid);
}

/* ---- POSIX ------------------------------------------------------------------------------------------ */

static const char *fresh_name(void)
{
	static char name[64];
	static unsigned n;

	snprintf(name, sizeof(name), "/preload-shared.%d.%u", (int)getpid(), n++);
	return name;
}

static int make(const char *name, size_t size)
{
	int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);

	CHECK(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
	CHECK(ftruncate(fd, (off_t)size) == 0);
	return fd;
}

static char *map_fd(int fd, size_t len, int prot, int flags, off_t off)
{
	char *p = mmap(NULL, len, prot, flags, fd, off);

	CHECK(p != MAP_FAILED);
	return p;
}

static void part_names(void)
{
	const char *name = fresh_name();
	char path[NAME_MAX + 8];
	struct stat st;
	int fd, again;

	FAILS(shm_open(name, O_RDWR, 0), ENOENT);
	FAILS(shm_unlink(name), ENOENT);
	fd = make(name, 3 * PAGE + 17);
	FAILS(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 3 * PAGE + 17 && S_ISREG(st.st_mode));
	CHECK((st.st_mode & 0777) == 0600 && st.st_uid == geteuid());
	CHECK((again = shm_open(name + 1, O_RDWR | O_CREAT, 0600)) >= 0);
	CHECK(fstat(again, &st) == 0 && st.st_size == 3 * PAGE + 17);
	CHECK(close(again) == 0);
	CHECK((again = shm_open(name, O_RDWR | O_TRUNC, 0)) >= 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 0);
	CHECK(close(again) == 0 && shm_unlink(name) == 0 && close(fd) == 0);
	FAILS(shm_open(name, O_RDWR, 0), ENOENT);
	FAILS(shm_open("/a/b", O_RDWR | O_CREAT, 0600), EINVAL);
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	CHECK(shm_open(path, O_RDWR | O_CREAT, 0600) == -1);
	CHECK(errno == ENAMETOOLONG || errno == EINVAL); /* of newer and older C libraries */
}

static void part_mappings(void)
{
	const char *name = fresh_name();
	int fd = make(name, 4 * MB), copy, reader;
	char *a = map_fd(fd, 4 * MB, RW, MAP_SHARED, 0), *b, *c;

	CHECK(a[0] == 0 && a[4 * MB - 1] == 0);
	fill(a, 4 * MB, 1);
	CHECK((copy = dup(fd)) >= 0 && close(fd) == 0);
	b = map_fd(copy, 2 * MB, RW, MAP_SHARED, MB);
	CHECK(holds(b, 2 * MB, 1 + MB / 512 * 7));
	b[5] = 77;
	CHECK(a[MB + 5] == 77);
	c = map_fd(copy, MB, RW, MAP_PRIVATE, 0);
	CHECK(holds(c, MB, 1));
	fill(c, MB, 9);
	CHECK(holds(a, MB, 1) && holds(c, MB, 9));
	CHECK(msync(a, 4 * MB, MS_SYNC) == 0);
	CHECK((reader = shm_open(name, O_RDONLY, 0)) >= 0);
	NO_MAP(mmap(NULL, MB, RW, MAP_SHARED, reader, 0), EACCES);
	CHECK(munmap(c, MB) == 0);
	c = map_fd(reader, MB, PROT_READ, MAP_SHARED, 0);
	CHECK(holds(c, MB, 1));
	FAILS(mprotect(c, MB, RW), EACCES);
	CHECK(munmap(c, MB) == 0);
	c = map_fd(reader, MB, RW, MAP_PRIVATE, 0);
	c[0] = 50;
	CHECK(c[0] == 50 && a[0] == 1);
	/* At a place of the program's choice. */
	CHECK(mmap(b, MB, RW, MAP_SHARED | MAP_FIXED, copy, 2 * MB) == b);
	CHECK(b[512] == a[2 * MB + 512]);
	/* The name goes, the memory stays, and can be mapped again. */
	CHECK(shm_unlink(name) == 0 && munmap(a, 4 * MB) == 0 && munmap(b, 2 * MB) == 0);
	a = map_fd(copy, 4 * MB, RW, MAP_SHARED, 0);
	CHECK(a[MB + 5] == 77 && holds(a, MB, 1));
	CHECK(close(copy) == 0 && close(reader) == 0 && munmap(a, 4 * MB) == 0);
	CHECK(munmap(c, MB) == 0);
}

static void part_sizes(void)
{
	const char *name = fresh_name();
	int fd = make(name, MB);
	char *p = map_fd(fd, 4 * MB, RW, MAP_SHARED, 0);
	struct stat st;

	fill(p, MB, 3);
	CHECK(is_bus(p + MB) && !is_bus(p + MB - 1));
	CHECK(ftruncate(fd, 4 * MB) == 0);
	CHECK(holds(p, MB, 3) && p[MB] == 0 && p[4 * MB - 1] == 0);
	p[4 * MB - 1] = 4;
	CHECK(ftruncate(fd, MB / 2) == 0 && is_bus(p + MB / 2) && holds(p, MB / 2, 3));
	CHECK(syscall(SYS_ftruncate, fd, 2 * MB) == 0);
	CHECK(p[MB / 2] == 0 && p[2 * MB - 1] == 0 && is_bus(p + 2 * MB));
	CHECK(posix_fallocate(fd, 2 * MB, MB) == 0 && p[3 * MB - 1] == 0);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 3 * MB);
	CHECK(fallocate(fd, 0, 0, MB) == 0 && fstat(fd, &st) == 0 && st.st_size == 3 * MB);
	CHECK(posix_fallocate(fd, -1, MB) == EINVAL && posix_fallocate(fd, 0, 0) == EINVAL);
	CHECK(close(fd) == 0);
	CHECK((fd = shm_open(name, O_RDONLY, 0)) >= 0);
	FAILS(ftruncate(fd, MB), EINVAL);
	CHECK(posix_fallocate(fd, 0, MB) == EBADF);
	CHECK(close(fd) == 0 && shm_unlink(name) == 0 && munmap(p, 4 * MB) == 0);
}

static void send_fd(int to, int fd)
{
	char byte = 'x', space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec io = {&byte, 1};
	struct msghdr m = {.msg_iov = &io,
			   .msg_iovlen = 1,
			   .msg_control = space,
			   .msg_controllen = sizeof(space)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	CHECK(sendmsg(to, &m, 0) == 1);
}

static int receive_fd(int from)
{
	char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec io = {&byte, 1};
	struct msghdr m = {.msg_iov = &io,
			   .msg_iovlen = 1,
			   .msg_control = space,
			   .msg_controllen = sizeof(space)};
	int fd;

	CHECK(recvmsg(from, &m, 0) == 1 && CMSG_FIRSTHDR(&m));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

/* Made by one process after the fork, mapped by the other through the descriptor alone. */
static void part_passed(void)
{
	const char *name = fresh_name();
	int pair[2], fd;
	char *p, byte = 0;
	pid_t pid;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid = fork();
	if (pid == 0) {
		fd = make(name, MB);
		p = map_fd(fd, MB, RW, MAP_SHARED, 0);
		fill(p, MB, 11);
		send_fd(pair[1], fd);
		CHECK(read(pair[1], &byte, 1) == 1);
		_exit(p[7] != 8);
	}
	fd = receive_fd(pair[0]);
	p = map_fd(fd, MB, RW, MAP_SHARED, 0);
	CHECK(holds(p, MB, 11));
	p[7] = 8;
	CHECK(write(pair[0], &byte, 1) == 1);
	ends_well(pid);
	CHECK(close(fd) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
	CHECK(munmap(p, MB) == 0 && shm_unlink(name) == 0);
}

/* A child has the descriptors, also of what has no name any more. */
static void part_forked(void)
{
	const char *name = fresh_name();
	int fd = make(name, MB);
	char *p = map_fd(fd, MB, RW, MAP_SHARED, 0), *q;
	pid_t pid;

	CHECK(shm_unlink(name) == 0);
	fill(p, MB, 5);
	pid = fork();
	if (pid == 0) {
		CHECK(holds(p, MB, 5) && munmap(p, MB) == 0);
		q = map_fd(fd, MB, RW, MAP_SHARED, 0);
		CHECK(holds(q, MB, 5) && ftruncate(fd, 2 * MB) == 0);
		q[1] = 6;
		_exit(close(fd) != 0);
	}
	ends_well(pid);
	CHECK(p[1] == 6);
	q = map_fd(fd, 2 * MB, RW, MAP_SHARED, 0);
	CHECK(q[1] == 6 && q[2 * MB - 1] == 0);
	CHECK(munmap(p, MB) == 0 && munmap(q, 2 * MB) == 0 && close(fd) == 0);
}

static void part_others(void)
{
	const char *name = fresh_name();
	int fd = make(name, 2 * MB);
	char *p = map_fd(fd, 2 * MB, RW, MAP_SHARED, 0);

	CHECK(close(fd) == 0);
	fill(p, 2 * MB, 21);
	run_other("other-posix", name);
	CHECK(holds(p, 2 * MB, 22));
	CHECK(shm_unlink(name) == 0 && munmap(p, 2 * MB) == 0);
}

static int other_posix(const char *name)
{
	int fd = shm_open(name, O_RDWR, 0);
	struct stat st;
	char *p;

	CHECK(fd >= 0 && fstat(fd, &st) == 0 && st.st_size == 2 * MB);
	p = map_fd(fd, 2 * MB, RW, MAP_SHARED, 0);
	CHECK(holds(p, 2 * MB, 21));
	fill(p, 2 * MB, 22);
	return 0;
}

/* Objects that come and go leave nothing behind: tests look at what is left. */
static void part_many(void)
{
	for (int i = 0; i < 60; i++) {
		const char *name = fresh_name();
		int fd = make(name, 4 * MB);
		char *p = map_fd(fd, 4 * MB, RW, MAP_SHARED, 0);

		memset(p, i, 4 * MB);
		if (i % 2)
			CHECK(shm_unlink(name) == 0 && close(fd) == 0);
		else
			CHECK(close(fd) == 0 && shm_unlink(name) == 0);
		CHECK(p[4 * MB - 1] == i && munmap(p, 4 * MB) == 0);
	}
}

static void *make_many(void *arg)
{
	(void)arg;
	for (int i = 0; i < 20; i++) {
		char name[64];
		int fd;
		char *p;

		snprintf(name, sizeof(name), "/preload-shared.%d.%lx.%d", (int)getpid(),
			 (unsigned long)pthread_self(), i);
		fd = make(name, MB);
		p = map_fd(fd, MB, RW, MAP_SHARED, 0);
		fill(p, MB, (unsigned)i);
		CHECK(close(fd) == 0 && holds(p, MB, (unsigned)i) && munmap(p, MB) == 0);
		CHECK(shm_unlink(name) == 0);
	}
	return NULL;
}

/* Forks while others open and close. */
static void part_threads(void)
{
	pthread_t threads[3];

	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&threads[i], NULL, make_many, NULL) == 0);
	for (int i = 0; i < 10; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			make_many(NULL);
			_exit(0);
		}
		ends_well(pid);
	}
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
}

/* ---- System V ------------------------------------------------------------------------------------- */

static unsigned long attachments(int id)
{
	struct shmid_ds ds;

	CHECK(shmctl(id, IPC_STAT, &ds) == 0);
	return ds.shm_nattch;
}

static char *attach(int id, int flags)
{
	char *p = shmat(id, NULL, flags);

	CHECK(p != MAP_FAILED);
	return p;
}

static void part_sysv(void)
{
	int id = shmget(IPC_PRIVATE, 2 * MB + 5, IPC_CREAT | 0600);
	struct shmid_ds ds;
	char *a, *b, *c;

	CHECK(id >= 0 && shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_segsz == 2 * MB + 5);
	CHECK(ds.shm_nattch == 0 && (ds.shm_perm.mode & 0777) == 0600);
	a = attach(id, 0);
	CHECK(a[0] == 0 && a[2 * MB + 4] == 0 && attachments(id) == 1);
	fill(a, 2 * MB, 1);
	b = attach(id, SHM_RDONLY);
	CHECK(b != a && holds(b, 2 * MB, 1) && attachments(id) == 2);
	a[3] = 33;
	CHECK(b[3] == 33);
	CHECK(shmdt(a) == 0 && attachments(id) == 1);
	FAILS(shmdt(a), EINVAL);
	FAILS(shmdt(b + PAGE), EINVAL);
	c = (char *)syscall(SYS_shmat, id, NULL, 0);
	CHECK(c != MAP_FAILED && c[3] == 33);
	/* Where it was before, also to the page. */
	CHECK(shmdt(c) == 0 && shmat(id, c + 5, SHM_RND) == c && c[3] == 33);
	NO_MAP(shmat(id, c + 5, 0), EINVAL);
	NO_MAP(shmat(id, c, 0), EINVAL);
	CHECK(shmat(id, c, SHM_REMAP) == c && c[3] == 33);
	/* Removed: who has it keeps it. */
	CHECK(shmctl(id, IPC_RMID, NULL) == 0 && c[3] == 33 && b[3] == 33);
	CHECK(shmdt(b) == 0 && attachments(id) == 1);
	CHECK(munmap(c, 2 * MB + PAGE) == 0);
	FAILS(shmctl(id, IPC_STAT, &ds), EINVAL);
	NO_MAP(shmat(id, NULL, 0), EINVAL);
	FAILS(shmget(IPC_PRIVATE, 0, IPC_CREAT | 0600), EINVAL);
}

static void part_sysv_keys(void)
{
	key_t key = (key_t)(0x5a000000 + getpid());
	int id = shmget(key, MB, IPC_CREAT | IPC_EXCL | 0600);
	char text[16], *p;
	pid_t pid;

	CHECK(id >= 0 && shmget(key, MB, IPC_CREAT | 0600) == id && shmget(key, 0, 0) == id);
	FAILS(shmget(key, MB, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
	FAILS(shmget(key, 2 * MB, 0), EINVAL);
	FAILS(shmget(key + 1, MB, 0), ENOENT);
	p = attach(id, 0);
	fill(p, MB, 31);
	snprintf(text, sizeof(text), "%d", key);
	run_other("other-sysv", text);
	CHECK(holds(p, MB, 32) && attachments(id) == 1);
	pid = fork();
	if (pid == 0) {
		CHECK(holds(p, MB, 32) && attachments(id) == 2);
		p[9] = 99;
		CHECK(shmdt(p) == 0 && attachments(id) == 1);
		p = attach(id, 0);
		_exit(p[9] != 99);
	}
	ends_well(pid);
	CHECK(p[9] == 99 && attachments(id) == 1);
	CHECK(shmctl(id, IPC_RMID, NULL) == 0 && p[9] == 99);
	FAILS(shmget(key, MB, 0), ENOENT);
	CHECK(shmdt(p) == 0);
}

static int other_sysv(const char *key)
{
	int id = shmget((key_t)strtol(key, NULL, 10), MB, 0);
	char *p;

	CHECK(id >= 0);
	p = attach(id, 0);
	CHECK(holds(p, MB, 31));
	fill(p, MB, 32);
	return 0;
}

static const struct part parts[] = {
	{"names", part_names},    {"mappings", part_mappings}, {"sizes", part_sizes},
	{"passed", part_passed},  {"forked", part_forked},     {"others", part_others},
	{"many", part_many},      {"threads", part_threads},   {"sysv", part_sysv},
	{"keys", part_sysv_keys},
};

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc == 3 && strcmp(argv[1], "other-posix") == 0)
		return other_posix(argv[2]);
	if (argc == 3 && strcmp(argv[1], "other-sysv") == 0)
		return other_sysv(argv[2]);
	run_parts(parts, sizeof(parts) / sizeof(*parts), argc, argv, 1);
	return 0;
}
