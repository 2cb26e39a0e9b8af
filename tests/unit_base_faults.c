/* SPDX-License-Identifier: MIT */
/* Fault points, the heap that fails by them, the stop at a store to the truth, the clock. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/faultpoint.h"
#include "base/mem.h"
#include "base/truth.h"

static int disarm(void **state)
{
	(void)state;
	return faultpoint_arm(NULL);
}

static void test_fail_and_count(void **state)
{
	(void)state;
	assert_false(faultpoint("a"));
	assert_int_equal(faultpoint_arm("a=fail,b=fail@3"), 0);
	assert_true(faultpoint("a"));
	assert_true(faultpoint("a"));
	assert_false(faultpoint("c"));
	assert_false(faultpoint("b"));
	assert_false(faultpoint("b"));
	assert_true(faultpoint("b"));
	assert_false(faultpoint("b"));
	assert_int_equal(faultpoint_passages("a"), 2);
	assert_int_equal(faultpoint_only("a"), 0);
	assert_int_equal(faultpoint_only("b"), 3);
	assert_int_equal(faultpoint_only("c"), 0);
	assert_int_equal(faultpoint_passages("b"), 4);
	assert_int_equal(faultpoint_passages("c"), 0);
	assert_int_equal(faultpoint_arm("b=fail"), 0);
	assert_int_equal(faultpoint_passages("b"), 0);
	assert_false(faultpoint("a"));
	assert_int_equal(faultpoint_arm(""), 0);
	assert_false(faultpoint("b"));
}

static void test_bad_specs_change_nothing(void **state)
{
	static const char *const bad[] = {
		"a",
		"=fail",
		"a=",
		"a=explode",
		"a=fail@0",
		"a=fail@",
		"a=fail@x",
		"a=delay",
		"a=delay:x",
		"a=fail:1",
		"a=fail,",
		",a=fail",
		"a_name_that_is_longer_than_any_fault_point_ever_needs=fail",
	};

	(void)state;
	assert_int_equal(faultpoint_arm("kept=fail"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(faultpoint_arm(bad[i]), ARENA_E_INVALID);
	assert_true(faultpoint("kept"));
}

static void test_delay(void **state)
{
	uint64_t before;

	(void)state;
	assert_int_equal(faultpoint_arm("slow=delay:2000@2"), 0);
	assert_false(faultpoint("slow"));
	before = clock_now();
	assert_false(faultpoint("slow"));
	assert_true(clock_now() - before >= 2 * NSEC_PER_MSEC);
}

static void test_die(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	assert_int_equal(faultpoint_arm("here=die@2"), 0);
	pid = fork();
	if (pid == 0) {
		faultpoint("here");
		faultpoint("here");
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 66);
}

static void test_kill(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	assert_int_equal(faultpoint_arm("here=kill"), 0);
	pid = fork();
	if (pid == 0) {
		faultpoint("here");
		_exit(1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void test_stop(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	assert_int_equal(faultpoint_arm("here=stop"), 0);
	pid = fork();
	if (pid == 0) {
		faultpoint("here");
		_exit(7);
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	kill(pid, SIGCONT);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 7);
}

#define PASSAGES 20000

static void *pass(void *failures)
{
	for (int i = 0; i < PASSAGES; i++)
		*(unsigned *)failures += faultpoint("shared");
	return NULL;
}

/* Of all threads together exactly one sees the Nth passage. */
static void test_threads(void **state)
{
	unsigned failures[4] = {0};
	pthread_t threads[4];
	unsigned sum = 0;

	(void)state;
	assert_int_equal(faultpoint_arm("shared=fail@30000"), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, pass, &failures[i]), 0);
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		sum += failures[i];
	}
	assert_int_equal(sum, 1);
	assert_int_equal(faultpoint_passages("shared"), 4 * PASSAGES);
}

static void test_environment(void **state)
{
	(void)state;
	setenv("ARENA_FAULTPOINTS", "env=fail", 1);
	faultpoint_arm_from_environment();
	unsetenv("ARENA_FAULTPOINTS");
	assert_true(faultpoint("env"));
}

static void test_heap(void **state)
{
	unsigned char *p, *q;
	char *s;

	(void)state;
	p = mem_array(16, 4);
	assert_non_null(p);
	for (int i = 0; i < 64; i++)
		assert_int_equal(p[i], 0);
	memset(p, 0xff, 64);
	assert_int_equal(faultpoint_arm("mem=fail@1"), 0);
	assert_null(mem_grow(p, 16, 32, 4));
	q = mem_grow(p, 16, 32, 4);
	assert_non_null(q);
	for (int i = 0; i < 128; i++)
		assert_int_equal(q[i], i < 64 ? 0xff : 0);
	free(q);

	assert_int_equal(faultpoint_arm("mem=fail"), 0);
	assert_null(mem_alloc(1));
	assert_null(mem_array(1, 1));
	assert_null(mem_strdup("x"));
	faultpoint_arm(NULL);
	assert_null(mem_array(SIZE_MAX / 2, 3));
	assert_null(mem_grow(NULL, 0, SIZE_MAX / 2, 3));
	s = mem_strdup("text");
	assert_string_equal(s, "text");
	free(s);
	p = mem_alloc(0);
	assert_non_null(p);
	free(p);
}

/* A child that is to die at its Nth store leaves exactly N stores behind. */
static void test_truth_stop(void **state)
{
	uint64_t *shared;
	int status, pipe_fd[2];
	uint64_t i;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(pipe_fd), 0);
	pid = fork();
	if (pid == 0) {
		uint64_t word = 0;

		truth_stop_after = 3;
		shared = &word;
		for (i = 1; i <= 5; i++) {
			if (write(pipe_fd[1], "s", 1) != 1)
				_exit(1);
			truth_store(shared, i);
		}
		_exit(0);
	}
	close(pipe_fd[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
	char buf[8];
	assert_int_equal(read(pipe_fd[0], buf, sizeof(buf)), 3);
	close(pipe_fd[0]);
}

static void test_clock(void **state)
{
	uint64_t before = clock_now();

	(void)state;
	assert_true(clock_now() >= before);
	clock_fake(5 * NSEC_PER_SEC);
	assert_int_equal(clock_now(), 5 * NSEC_PER_SEC);
	clock_fake(0);
	assert_true(clock_now() >= before);
	assert_true(clock_thread_cpu() > 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_fail_and_count, disarm),
		cmocka_unit_test_teardown(test_bad_specs_change_nothing, disarm),
		cmocka_unit_test_teardown(test_delay, disarm),
		cmocka_unit_test_teardown(test_die, disarm),
		cmocka_unit_test_teardown(test_kill, disarm),
		cmocka_unit_test_teardown(test_stop, disarm),
		cmocka_unit_test_teardown(test_threads, disarm),
		cmocka_unit_test_teardown(test_environment, disarm),
		cmocka_unit_test_teardown(test_heap, disarm),
		cmocka_unit_test(test_truth_stop),
		cmocka_unit_test(test_clock),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
