/* SPDX-License-Identifier: MIT */
/*
 * The order check of locks and the control thread. A violation aborts, so it happens in a child
 * whose log is read; only debug builds check, others skip those tests.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"
#include "daemon/sync/lock.h"

static struct lock machine, queue, queue2, log_lock;

static int setup(void **state)
{
	(void)state;
	lock_init(&machine, LOCK_CLASS_MACHINE);
	lock_init(&queue, LOCK_CLASS_WORKQUEUE);
	lock_init(&queue2, LOCK_CLASS_WORKQUEUE);
	lock_init(&log_lock, LOCK_CLASS_LOG);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	lock_destroy(&machine);
	lock_destroy(&queue);
	lock_destroy(&queue2);
	lock_destroy(&log_lock);
	control_thread_reset();
	return 0;
}

/* Runs `f` in a child; returns the signal that ended it, 0 for none, and its log. */
static int run_in_child(void (*f)(void), char *log, size_t size)
{
	size_t used = 0;
	int fds[2], status;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		signal(SIGABRT, SIG_DFL);
		log_set_fd(fds[1]);
		f();
		_exit(0);
	}
	close(fds[1]);
	while ((n = read(fds[0], log + used, size - 1 - used)) > 0)
		used += (size_t)n;
	log[used] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void in_order(void)
{
	lock_acquire(&machine);
	lock_acquire(&queue);
	lock_acquire(&log_lock);
	lock_assert_held(&queue);
	/* In any order. */
	lock_release(&machine);
	lock_release(&log_lock);
	lock_release(&queue);
	lock_acquire(&machine);
	lock_release(&machine);
}

static void test_order_kept(void **state)
{
	char log[1024];

	(void)state;
	assert_int_equal(run_in_child(in_order, log, sizeof(log)), 0);
	assert_string_equal(log, "");
}

#ifdef ARENA_DEBUG
static void out_of_order(void)
{
	lock_acquire(&queue);
	lock_acquire(&machine);
}

static void same_class(void)
{
	lock_acquire(&queue);
	lock_acquire(&queue2);
}

static void twice(void)
{
	lock_acquire(&queue);
	lock_acquire(&queue);
}

/* Releasing from the middle must not forget what is still held. */
static void out_of_order_after_release(void)
{
	lock_acquire(&machine);
	lock_acquire(&queue);
	lock_acquire(&log_lock);
	lock_release(&queue);
	lock_acquire(&queue);
}

static void release_not_held(void)
{
	lock_release(&machine);
}

static void assert_not_held(void)
{
	lock_assert_held(&machine);
}

static void test_violations_abort(void **state)
{
	void (*const violations[])(void) = {
		out_of_order,     same_class,      twice, out_of_order_after_release,
		release_not_held, assert_not_held,
	};
	char log[1024];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(violations); i++) {
		assert_int_equal(run_in_child(violations[i], log, sizeof(log)), SIGABRT);
		assert_non_null(strstr(log, "assertion failed"));
	}
}

/* The report names both classes, and this file at both places. */
static void test_report_names_both(void **state)
{
	const char *first, *second;
	char log[1024];

	(void)state;
	assert_int_equal(run_in_child(out_of_order, log, sizeof(log)), SIGABRT);
	first = strstr(log, "unit_sync_lock.c");
	assert_non_null(first);
	second = strstr(first + 1, "unit_sync_lock.c");
	assert_non_null(second);
	assert_true(second < strchr(log, '\n'));
	assert_non_null(strstr(log, "takes MACHINE"));
	assert_non_null(strstr(log, "holds WORKQUEUE"));
}

static void *check_control(void *arg)
{
	CONTROL_THREAD();
	return arg;
}

static void from_another_thread(void)
{
	pthread_t thread;

	CONTROL_THREAD();
	CONTROL_THREAD();
	if (pthread_create(&thread, NULL, check_control, NULL) == 0)
		pthread_join(thread, NULL);
}

static void handed_over(void)
{
	pthread_t thread;

	CONTROL_THREAD();
	control_thread_reset();
	if (pthread_create(&thread, NULL, check_control, NULL) == 0)
		pthread_join(thread, NULL);
}

static void test_control_thread(void **state)
{
	char log[1024];

	(void)state;
	assert_int_equal(run_in_child(from_another_thread, log, sizeof(log)), SIGABRT);
	assert_non_null(strstr(log, "not the control thread"));
	assert_int_equal(run_in_child(handed_over, log, sizeof(log)), 0);
}
#else
static void test_violations_abort(void **state)
{
	(void)state;
	skip();
}

static void test_report_names_both(void **state)
{
	(void)state;
	skip();
}

static void test_control_thread(void **state)
{
	(void)state;
	skip();
}
#endif

#define ROUNDS 20000

static unsigned counter;

static void *count(void *arg)
{
	for (int i = 0; i < ROUNDS; i++) {
		LOCK_GUARD(&queue);
		counter++;
	}
	return arg;
}

static void test_mutual_exclusion(void **state)
{
	pthread_t threads[3];

	(void)state;
	counter = 0;
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, count, NULL), 0);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(counter, 3 * ROUNDS);
}

static void test_names(void **state)
{
	(void)state;
	assert_string_equal(lock_class_name(LOCK_CLASS_MACHINE), "MACHINE");
	assert_string_equal(lock_class_name(LOCK_CLASS_LOG), "LOG");
	assert_string_equal(lock_class_name(NR_LOCK_CLASSES), "?");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_order_kept),        TEST(test_violations_abort),
		TEST(test_report_names_both), TEST(test_control_thread),
		TEST(test_mutual_exclusion),  TEST(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
