/* SPDX-License-Identifier: MIT */
/*
 * files_machine.h - what the tests of the files room share: a small machine with two nodes, reading
 * and writing as some user, and looking at texts line by line.
 */
#ifndef TESTS_FILES_MACHINE_H
#define TESTS_FILES_MACHINE_H

#include <inttypes.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "arena/arena.h"
#include "base/bitmap.h"
#include "base/cleanup.h"
#include "base/util.h"
#include "daemon/files/files.h"

#define MIB (UINT64_C(1) << 20)
#define ARENA_BYTES (256 * MIB)
#define SECTION_BYTES (8 * MIB)

static struct machine machine;
static struct files *files;
static const struct credentials root = {.uid = 0};
static const struct credentials stranger __unused_ = {.uid = 54321, .gid = 54321};

static int boot(void **state __unused_)
{
	struct machine_config config;
	char err[256] = "";

	machine_config_init(&config);
	config.arena_size = ARENA_BYTES;
	config.section_size = SECTION_BYTES;
	config.nodes = 2;
	config.hugepages = false;
	config.zero_pool = 0;
	if (machine_boot(&machine, &config, err, sizeof(err))) {
		fprintf(stderr, "boot: %s\n", err);
		return -1;
	}
	machine_config_clear(&config);
	return files_create(&machine, &files);
}

static int shut_down(void **state __unused_)
{
	files = files_destroy(files);
	machine_shutdown(&machine);
	return 0;
}

/* The text, to be freed; the file must be there. */
static char *text_of(const char *path)
{
	char *text = NULL;
	size_t len = 0;
	int r = files_read(files, &root, path, &text, &len);

	if (r)
		fail_msg("%s: %s", path, error_text(r));
	assert_int_equal(strlen(text), len);
	return text;
}

static int __unused_ read_as(const struct credentials *cred, const char *path)
{
	char *text = NULL;
	size_t len;
	int r = files_read(files, cred, path, &text, &len);

	free(text);
	return r;
}

static int __unused_ store(const char *path, const char *value)
{
	return files_write(files, &root, path, value, strlen(value));
}

static void __unused_ assert_text(const char *path, const char *want)
{
	char *text = text_of(path);

	assert_string_equal(text, want);
	free(text);
}

static bool __unused_ matches(const char *line, const char *pattern)
{
	regex_t re;
	int r;

	assert_int_equal(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
	r = regexec(&re, line, 0, NULL, 0);
	regfree(&re);
	return r == 0;
}

static void __unused_ assert_matches(const char *line, const char *pattern)
{
	if (!matches(line, pattern))
		fail_msg("'%s' does not match '%s'", line, pattern);
}

/* The number behind `label` at the start of a line; the line must be there. */
static uint64_t __unused_ number_of(const char *text, const char *label)
{
	size_t len = strlen(label);

	for (const char *line = text; *line; line = strchr(line, '\n') + 1) {
		if (strncmp(line, label, len) == 0 && (line[len] == ' ' || line[len] == ':'))
			return strtoull(line + len + 1 + strspn(line + len + 1, " "), NULL, 10);
		if (!strchr(line, '\n'))
			break;
	}
	fail_msg("no line '%s' in:\n%s", label, text);
	return 0;
}

static uint64_t __unused_ number_in(const char *path, const char *label)
{
	char *text = text_of(path);
	uint64_t n = number_of(text, label);

	free(text);
	return n;
}

#endif
