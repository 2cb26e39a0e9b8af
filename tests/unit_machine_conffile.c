/* SPDX-License-Identifier: MIT */
/*
 * The arenad.conf that is installed: it has every key of config.def once, commented out, with what
 * the table says of it; as it is it changes nothing; each line counts when its # is taken away, and
 * what is said to be a default is one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "daemon/machine/config.h"

#define MAX_LINES 1024

static char *lines[MAX_LINES];
static unsigned nr_lines;

static int read_conf(void **state)
{
	const char *build = getenv("ARENA_BUILD");
	char path[4096];
	_cleanup_(fclosep) FILE *f = NULL;
	size_t size = 0;

	(void)state;
	snprintf(path, sizeof(path), "%s/share/arenad.conf", build ? build : "build");
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (nr_lines < MAX_LINES && getline(&lines[nr_lines], &size, f) > 0) {
		lines[nr_lines][strcspn(lines[nr_lines], "\n")] = '\0';
		nr_lines++;
		size = 0;
	}
	return nr_lines < MAX_LINES ? 0 : -1;
}

static int free_lines(void **state)
{
	(void)state;
	for (unsigned i = 0; i <= nr_lines; i++)
		free(lines[i]);
	return 0;
}

/* "#key = value" begins with # and no space. */
static bool is_key_line(const char *line)
{
	return line[0] == '#' && line[1] && line[1] != ' ';
}

static unsigned line_of(const char *key)
{
	unsigned found = nr_lines;
	size_t n = strlen(key);

	for (unsigned i = 0; i < nr_lines; i++) {
		if (!is_key_line(lines[i]) || strncmp(lines[i] + 1, key, n) != 0 ||
		    strncmp(lines[i] + 1 + n, " = ", 3) != 0)
			continue;
		assert_int_equal(found, nr_lines); /* once */
		found = i;
	}
	assert_int_not_equal(found, nr_lines);
	return found;
}

/* The comment above a line, as one line with single spaces. */
static void comment_above(unsigned line, char *text, size_t size)
{
	unsigned first = line;

	while (first && strncmp(lines[first - 1], "# ", 2) == 0)
		first--;
	*text = '\0';
	for (; first < line; first++) {
		assert_true(strlen(text) + strlen(lines[first]) < size);
		strcat(text, lines[first] + 1);
	}
}

static void test_every_key_as_the_table_has_it(void **state)
{
	unsigned keys = 0;

	(void)state;
	for (unsigned i = 0; i < nr_config_keys; i++) {
		char text[2048];

		comment_above(line_of(config_keys[i].name), text, sizeof(text));
		assert_non_null(strstr(text, config_keys[i].help));
		assert_non_null(strstr(text, config_keys[i].accepted));
	}
	for (unsigned i = 0; i < nr_lines; i++)
		keys += is_key_line(lines[i]);
	assert_int_equal(keys, nr_config_keys);
}

static void load(struct machine_config *c, bool uncommented)
{
	char path[] = "/tmp/arenad-conf.XXXXXX", err[1024] = "";
	int fd = mkstemp(path);
	int r;

	assert_true(fd >= 0);
	for (unsigned i = 0; i < nr_lines; i++)
		dprintf(fd, "%s\n", lines[i] + (uncommented && is_key_line(lines[i])));
	close(fd);
	machine_config_init(c);
	r = machine_config_load(c, path, err, sizeof(err));
	unlink(path);
	if (r)
		fail_msg("%s", err);
}

/* All but strings, which are not set by default, and the pool, which is left to a tunable. */
static void assert_defaults(const struct machine_config *c)
{
	struct machine_config fresh;

	machine_config_init(&fresh);
	assert_int_equal(c->arena_size, fresh.arena_size);
	assert_int_equal(c->nodes, fresh.nodes);
	assert_int_equal(c->zone_dma, fresh.zone_dma);
	assert_int_equal(c->zone_normal, fresh.zone_normal);
	assert_int_equal(c->section_size, fresh.section_size);
	assert_int_equal(c->process_isolation, fresh.process_isolation);
	assert_int_equal(c->hugepages, fresh.hugepages);
	assert_int_equal(c->log_level, fresh.log_level);
	assert_int_equal(c->supervisor, fresh.supervisor);
	assert_int_equal(c->watchdog, fresh.watchdog);
}

static void test_changes_nothing_as_it_is(void **state)
{
	struct machine_config c;

	(void)state;
	load(&c, false);
	assert_defaults(&c);
	assert_null(c.socket);
	assert_null(c.mount);
	assert_null(c.node_sizes);
	assert_null(c.distances);
	assert_null(c.reserve);
	assert_int_equal(c.zero_pool, UINT64_MAX);
	machine_config_clear(&c);
}

static void test_shows_the_defaults(void **state)
{
	struct machine_config c;

	(void)state;
	load(&c, true);
	assert_defaults(&c);
	assert_string_equal(c.socket, "/run/arenad/socket");
	assert_string_equal(c.mount, "none");
	assert_non_null(c.node_sizes);
	assert_non_null(c.distances);
	assert_non_null(c.reserve);
	assert_int_equal(c.zero_pool, UINT64_C(2) << 30);
	machine_config_clear(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_key_as_the_table_has_it),
		cmocka_unit_test(test_changes_nothing_as_it_is),
		cmocka_unit_test(test_shows_the_defaults),
	};

	return cmocka_run_group_tests(tests, read_conf, free_lines);
}
