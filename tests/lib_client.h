/* SPDX-License-Identifier: MIT */
/*
 * lib_client.h - clients of a test's daemon: functions that run in forked processes.
 *
 * A client function opens its own arena (client_open()), checks with the macros below, which
 * print the place and end the process, and returns when all is well. Parent and children meet at
 * gates and leave numbers in shared memory.
 */
#ifndef TESTS_LIB_CLIENT_H
#define TESTS_LIB_CLIENT_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "arena/arena.h"
#include "tests/lib_daemon.h"

#define PAGE 4096ul
#define LEAF (2ul << 20)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define ANON_SHARED (MAP_SHARED | MAP_ANONYMOUS)

#define CHECK(cond)                                              \
	do {                                                     \
		if (!(cond))                                     \
			check_failed(__FILE__, __LINE__, #cond); \
	} while (0)
/* `expr` gives -1, NULL or MAP_FAILED and this errno. */
#define CHECK_ERRNO(expr, err)                                                        \
	do {                                                                          \
		intptr_t check_r_;                                                    \
		errno = 0;                                                            \
		check_r_ = (intptr_t)(expr);                                          \
		if ((check_r_ != -1 && check_r_ != 0) || errno != (err))              \
			check_errno_failed(__FILE__, __LINE__, #expr, check_r_, err); \
	} while (0)
/* Both give the same result class (failed or not) and the same errno. */
#define CHECK_SAME_ERRNO(expr, kernel)                                                \
	do {                                                                          \
		int ours_, theirs_;                                                   \
		errno = 0;                                                            \
		ours_ = (intptr_t)(expr) == -1 ? errno : 0;                           \
		errno = 0;                                                            \
		theirs_ = (intptr_t)(kernel) == -1 ? errno : 0;                       \
		if (ours_ != theirs_)                                                 \
			check_same_failed(__FILE__, __LINE__, #expr, ours_, theirs_); \
	} while (0)
#define CHECK_OK(expr)                                                        \
	do {                                                                  \
		errno = 0;                                                    \
		if ((expr) != 0)                                              \
			check_errno_failed(__FILE__, __LINE__, #expr, -1, 0); \
	} while (0)

void check_failed(const char *file, int line, const char *what) __attribute__((noreturn));
void check_errno_failed(const char *file, int line, const char *what, intptr_t r, int expected)
	__attribute__((noreturn));
void check_same_failed(const char *file, int line, const char *what, int ours, int theirs)
	__attribute__((noreturn));

/* ---- processes ----------------------------------------------------------------------------- */

typedef void (*client_fn)(struct test_daemon *d, void *arg);

/* Run fn(d, arg) in a child; its exit status is 0 if fn returns. It dies with its parent. */
pid_t client_start(struct test_daemon *d, client_fn fn, void *arg);
/* The same as another user; the group and no supplementary groups are the uid's, too. */
pid_t client_start_as(struct test_daemon *d, uid_t uid, client_fn fn, void *arg);
/* It ended with status 0. */
void client_wait(pid_t pid);
/* It ended by this signal. */
void client_wait_signal(pid_t pid, int sig);
/* It stopped, by SIGSTOP or a fault point. */
void client_wait_stopped(pid_t pid);
/* It ended, and is left to be waited for. */
void client_wait_ended(pid_t pid);
/* Start, wait. */
void client_run(struct test_daemon *d, client_fn fn, void *arg);
void client_run_as(struct test_daemon *d, uid_t uid, client_fn fn, void *arg);
/* Arm fault points ($ARENA_FAULTPOINTS) in this client; before client_open(). */
void client_faultpoints(const char *spec);

/* In a client: with the trap that $ARENA_TEST_TRAP names (signal, userfaultfd, auto), else auto. */
arena_t *client_open(struct test_daemon *d);
arena_t *client_open_trap(struct test_daemon *d, enum arena_trap trap);
enum arena_trap client_trap(void);
void *client_map(arena_t *a, size_t len); /* private, anonymous, read-write */
arena_shm_t *client_shm(arena_t *a, const char *name, int oflag, mode_t mode);

/* In a client: a child of its own, for the body that follows; without the exit handlers of the test. */
#define IN_CHILD(pid) for (pid = fork(); pid == 0; _exit(0))
/* Such a child ended, and well. */
void expect_child(pid_t pid);

/* ---- meeting ------------------------------------------------------------------------------- */

/* A pipe: who passes waits until someone has opened it once for him. Make it before the fork. */
struct gate {
	int r, w;
};

struct gate gate_make(void);
void gate_open(const struct gate *g, unsigned n);
/* Wait at most 30 s; then this process fails: a client by _exit(1), a test by its assertion. */
void gate_pass(const struct gate *g);
void gate_close(struct gate *g);

/* Zeroed memory that parent and later children share. */
void *shared_alloc(size_t size);
void shared_free(void *p, size_t size);

/* ---- touching ------------------------------------------------------------------------------ */

/* Is the access a fault? 0, or the signal's number; *info says more (NULL allowed). */
struct fault_seen {
	int signo, code;
	uintptr_t addr;
};
/* Installs a SIGSEGV and SIGBUS handler for good at the first call. Not from several threads. */
int try_read(const volatile void *p, struct fault_seen *seen);
int try_write(volatile void *p, struct fault_seen *seen);
/* Fill with, and test for, a pattern that depends on seed and offset. */
void pattern_fill(void *p, size_t len, uint64_t seed);
bool pattern_is(const void *p, size_t len, uint64_t seed);
bool is_zero(const void *p, size_t len);

#endif
