/* SPDX-License-Identifier: MIT */
/* parse, error table, log: what goes from text to numbers and back. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/error.h"
#include "base/log.h"
#include "base/parse.h"
#include "base/util.h"

#define UNTOUCHED UINT64_C(0x1234)

static void test_parse_u64(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = {
		{"0", 0},
		{"18446744073709551615", UINT64_MAX},
		{"0xffffffffffffffff", UINT64_MAX},
		{"0Xa", 10},
		{" 42\n", 42},
		{"010", 10},
	};
	static const char *const bad[] = {
		"",
		" ",
		"-1",
		"+1",
		"1x",
		"0x",
		"1 2",
		"18446744073709551616",
		"0x10000000000000000",
		"1.5",
		"a",
	};
	uint64_t n = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(parse_u64(bad[i], &n), ARENA_E_INVALID);
		assert_int_equal(n, UNTOUCHED);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse_u64(good[i].text, &n), 0);
		assert_true(n == good[i].value);
	}
}

static void test_parse_size(void **state)
{
	static const struct {
		const char *text;
		uint64_t value;
	} good[] = {
		{"4096", 4096},
		{"64M", UINT64_C(64) << 20},
		{"2g", UINT64_C(2) << 30},
		{"1T\n", UINT64_C(1) << 40},
		{"3k", 3072},
		{"0", 0},
		{"16777215T", UINT64_C(16777215) << 40},
	};
	static const char *const bad[] = {
		"", "M", "1MB", "1 M", "-1M", "16777216T", "1P", "18446744073709551615K", "1.5G",
	};
	uint64_t n = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(parse_size(bad[i], &n), ARENA_E_INVALID);
		assert_int_equal(n, UNTOUCHED);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse_size(good[i].text, &n), 0);
		assert_true(n == good[i].value);
	}
}

static void test_parse_bool(void **state)
{
	static const char *const yes[] = {"1", "yes", "on", "true", "TRUE", " 1\n"};
	static const char *const no[] = {"0", "no", "off", "false", "Off"};
	static const char *const bad[] = {"", "2", "y", "yess", "on off", "10"};
	bool b;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(yes); i++) {
		b = false;
		assert_int_equal(parse_bool(yes[i], &b), 0);
		assert_true(b);
	}
	for (size_t i = 0; i < ARRAY_SIZE(no); i++) {
		b = true;
		assert_int_equal(parse_bool(no[i], &b), 0);
		assert_false(b);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(parse_bool(bad[i], &b), ARENA_E_INVALID);
}

static void test_format_size(void **state)
{
	char buf[32];

	(void)state;
	assert_string_equal(format_size(buf, sizeof(buf), 0), "0 B");
	assert_string_equal(format_size(buf, sizeof(buf), 1023), "1023 B");
	assert_string_equal(format_size(buf, sizeof(buf), 1024), "1 KiB");
	assert_string_equal(format_size(buf, sizeof(buf), UINT64_C(3) << 29), "1.5 GiB");
	assert_string_equal(format_size(buf, sizeof(buf), UINT64_C(64) << 20), "64 MiB");
	assert_string_equal(format_size(buf, sizeof(buf), UINT64_MAX), "16.0 EiB");
}

static void test_error_table(void **state)
{
	(void)state;
	assert_int_equal(error_to_errno(0), 0);
	assert_int_equal(error_to_errno(-EIO), EIO);
	assert_int_equal(error_to_errno(ARENA_E_NOT_MAPPED), ENOMEM);
	assert_int_equal(error_to_errno(ARENA_E_EXISTS), EEXIST);
	assert_int_equal(error_to_errno(ARENA_E_COUNT), EIO);
	for (int e = 1; e < ARENA_E_COUNT; e++) {
		assert_true(error_to_errno(e) > 0);
		assert_true(strlen(error_text(e)) > 0);
	}
	assert_string_equal(error_text(ARENA_E_BUSY), "in use");
	assert_string_equal(error_text(-ENOENT), "No such file or directory");
	assert_string_equal(error_text(ARENA_E_COUNT), "unknown condition");
	assert_string_equal(error_text(-99999), "unknown error");
}

/* What one call of log_line() writes. */
#define LOGGED(buf, ...)                                     \
	do {                                                 \
		int pipe_[2];                                \
		ssize_t n_;                                  \
		assert_int_equal(pipe(pipe_), 0);            \
		log_set_fd(pipe_[1]);                        \
		log_line(__VA_ARGS__);                       \
		log_set_fd(-1);                              \
		close(pipe_[1]);                             \
		n_ = read(pipe_[0], (buf), sizeof(buf) - 1); \
		assert_true(n_ >= 0);                        \
		(buf)[n_] = '\0';                            \
		close(pipe_[0]);                             \
	} while (0)

static void test_log_lines(void **state)
{
	char buf[8192];
	char text[3000];

	(void)state;
	LOGGED(buf, LOG_LEVEL_WARNING, "frame %d", 7);
	assert_string_equal(buf, "<4>frame 7\n");
	LOGGED(buf, LOG_LEVEL_ERR, "%s", "a\nb\x1b[31m\x7f\xc2\x9b\xc3\xa9");
	assert_string_equal(buf, "<3>a\\x0ab\\x1b[31m\\x7f\xc2\\x9b\xc3\xa9\n");

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	LOGGED(buf, LOG_LEVEL_ERR, "%s", text);
	assert_true(strlen(buf) < sizeof(text));
	assert_string_equal(buf + strlen(buf) - 5, "x...\n");
}

static void test_log_levels(void **state)
{
	enum log_level before = log_get_level();
	enum log_level level;
	char buf[64];

	(void)state;
	assert_true(log_level_parse("debug", &level));
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	assert_false(log_level_parse("loud", &level));
	log_set_level(LOG_LEVEL_NOTICE);
	LOGGED(buf, LOG_LEVEL_INFO, "quiet");
	assert_string_equal(buf, "");
	LOGGED(buf, LOG_LEVEL_NOTICE, "heard");
	assert_string_equal(buf, "<5>heard\n");
	log_set_level(before);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse_u64),   cmocka_unit_test(test_parse_size),
		cmocka_unit_test(test_parse_bool),  cmocka_unit_test(test_format_size),
		cmocka_unit_test(test_error_table), cmocka_unit_test(test_log_lines),
		cmocka_unit_test(test_log_levels),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
