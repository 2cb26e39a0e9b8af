/* SPDX-License-Identifier: MIT */
/* Configuration: values and files that are taken, and what is said about those that are not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/machine/config.h"

static char err[1024];

static int set(struct machine_config *c, const char *key, const char *value)
{
	err[0] = '\0';
	return machine_config_set(c, key, value, err, sizeof(err));
}

static const char *accepted(const char *key)
{
	for (unsigned i = 0; i < nr_config_keys; i++)
		if (strcmp(config_keys[i].name, key) == 0)
			return config_keys[i].accepted;
	fail_msg("no key %s", key);
	return NULL;
}

static void test_good_values(void **state)
{
	struct machine_config c;

	(void)state;
	machine_config_init(&c);
	assert_int_equal(set(&c, "socket", "/tmp/x"), 0);
	assert_string_equal(c.socket, "/tmp/x");
	assert_int_equal(set(&c, "arena-size", "64M"), 0);
	assert_int_equal(c.arena_size, 64 << 20);
	assert_int_equal(set(&c, "arena-size", "0"), 0);
	assert_int_equal(set(&c, "nodes", "64"), 0);
	assert_int_equal(c.nodes, 64);
	assert_int_equal(set(&c, "node-sizes", "1G,512M"), 0);
	assert_string_equal(c.node_sizes, "1G,512M");
	assert_int_equal(set(&c, "distances", "10 20;20 10"), 0);
	assert_int_equal(set(&c, "zone-dma", "4M"), 0);
	assert_int_equal(c.zone_dma, 4 << 20);
	assert_int_equal(set(&c, "zone-normal", "16m"), 0);
	assert_int_equal(set(&c, "section-size", "2M"), 0);
	assert_int_equal(c.section_size, 2 << 20);
	assert_int_equal(set(&c, "reserve", "1M@0,4K@64M"), 0);
	assert_int_equal(set(&c, "isolation", "process"), 0);
	assert_true(c.process_isolation);
	assert_int_equal(set(&c, "isolation", "uid"), 0);
	assert_false(c.process_isolation);
	assert_int_equal(set(&c, "hugepages", "no"), 0);
	assert_false(c.hugepages);
	assert_int_equal(set(&c, "zero-pool", "0"), 0);
	assert_int_equal(c.zero_pool, 0);
	assert_int_equal(set(&c, "log-level", "debug"), 0);
	assert_int_equal(c.log_level, LOG_LEVEL_DEBUG);
	assert_int_equal(set(&c, "mount", "none"), 0);
	assert_int_equal(set(&c, "supervisor", "no"), 0);
	assert_false(c.supervisor);
	machine_config_clear(&c);
}

/* Each leaves the configuration as it was and says the key, the value and what is accepted. */
static void test_bad_values(void **state)
{
	static const struct {
		const char *key, *value;
	} bad[] = {
		{"socket", ""},         {"arena-size", "63M"},   {"arena-size", "9T"},
		{"arena-size", "lots"}, {"arena-size", "-1"},    {"arena-size", "64MB"},
		{"nodes", "65"},        {"nodes", "two"},        {"nodes", ""},
		{"node-sizes", "1G,"},  {"node-sizes", "1G,1M"}, {"node-sizes", "0"},
		{"distances", "10 20"}, {"distances", "20"},     {"distances", "10 20;20 255"},
		{"zone-dma", "x"},      {"section-size", "3M"},  {"section-size", "1M"},
		{"reserve", "1M"},      {"reserve", "1M@"},      {"reserve", "100@0"},
		{"reserve", "0@0"},     {"isolation", "none"},   {"hugepages", "maybe"},
		{"zero-pool", "4096G"}, {"log-level", "loud"},   {"mount", "/mnt"},
		{"supervisor", "2"},
	};
	struct machine_config c, before;

	(void)state;
	machine_config_init(&c);
	before = c;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(set(&c, bad[i].key, bad[i].value), ARENA_E_INVALID);
		assert_memory_equal(&c, &before, sizeof(c));
		assert_non_null(strstr(err, bad[i].key));
		assert_non_null(strstr(err, bad[i].value));
		assert_non_null(strstr(err, accepted(bad[i].key)));
		assert_null(strchr(err, '\n'));
	}
}

static void test_long_socket_path(void **state)
{
	struct machine_config c;
	char path[200];

	(void)state;
	machine_config_init(&c);
	memset(path, 'a', sizeof(path));
	path[104] = '\0';
	assert_int_equal(set(&c, "socket", path), ARENA_E_INVALID);
	path[103] = '\0';
	assert_int_equal(set(&c, "socket", path), 0);
	machine_config_clear(&c);
}

static void test_unknown_key(void **state)
{
	struct machine_config c;

	(void)state;
	machine_config_init(&c);
	assert_int_equal(set(&c, "arena_size", "1G"), ARENA_E_NOT_FOUND);
	assert_non_null(strstr(err, "arena_size"));
	for (unsigned i = 0; i < nr_config_keys; i++)
		assert_non_null(strstr(err, config_keys[i].name));
}

/* ---- files ----------------------------------------------------------------------- */

static char path[] = "/tmp/unit_machine_config.XXXXXX";

static int load(struct machine_config *c, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	err[0] = '\0';
	return machine_config_load(c, path, err, sizeof(err));
}

static void test_good_files(void **state)
{
	struct machine_config c;

	(void)state;
	machine_config_init(&c);
	assert_int_equal(load(&c, ""), 0);
	assert_int_equal(load(&c, "# comment\n\nnodes = 3\n; another\n[arenad]\narena-size=128M\n"),
			 0);
	assert_int_equal(c.nodes, 3);
	assert_int_equal(c.arena_size, 128 << 20);
	/* Indentation means nothing, also where it would continue the line before. */
	assert_int_equal(load(&c, "  [arenad]\n  nodes = 4\n\tarena-size = 256M\n"), 0);
	assert_int_equal(c.nodes, 4);
	assert_int_equal(c.arena_size, 256 << 20);
	assert_int_equal(load(&c, "distances = 10 30;30 10\r\nnodes: 2"), 0);
	assert_string_equal(c.distances, "10 30;30 10");
	assert_int_equal(c.nodes, 2);
	machine_config_clear(&c);
}

static void expect_mistake(const char *text, int result, unsigned line, const char *key,
			   const char *says)
{
	struct machine_config c;
	char where[128];

	machine_config_init(&c);
	assert_int_equal(load(&c, text), result);
	snprintf(where, sizeof(where), "%s:%u: ", path, line);
	if (!strstr(err, where) || !strstr(err, key) || !strstr(err, says))
		fail_msg("'%s' is not about %s, %s and '%s'", err, where, key, says);
	machine_config_clear(&c);
}

static void test_bad_files(void **state)
{
	char line[512];

	(void)state;
	expect_mistake("nodes = 2\n\nnodes = 99\n", ARENA_E_INVALID, 3, "nodes", accepted("nodes"));
	expect_mistake("[arenad]\nmount = /mnt\n", ARENA_E_INVALID, 2, "mount", accepted("mount"));
	expect_mistake("nodes = 2\ncolour = red\n", ARENA_E_NOT_FOUND, 2, "colour", "arena-size");
	expect_mistake("[arenad]\nnodes = 1\n[other]\n", ARENA_E_INVALID, 3, "", "[arenad]");
	expect_mistake("[arenad\nnodes = 1\n", ARENA_E_INVALID, 1, "", "[arenad]");
	expect_mistake("nodes = 2\nnodes\nnodes = 99\n", ARENA_E_INVALID, 3, "nodes",
		       accepted("nodes"));
	expect_mistake("nodes = 2\nnodes\nnodes = 3\n", ARENA_E_INVALID, 2, "", "key = value");
	expect_mistake("nodes = 2\n  nodes = many\n", ARENA_E_INVALID, 2, "nodes",
		       accepted("nodes"));
	memset(line, 'x', sizeof(line));
	memcpy(line, "\nsocket=", 8);
	line[sizeof(line) - 1] = '\0';
	expect_mistake(line, ARENA_E_INVALID, 2, "", "too long");
}

static void test_no_file(void **state)
{
	struct machine_config c;

	(void)state;
	machine_config_init(&c);
	assert_int_equal(machine_config_load(&c, "/nonexistent/file", err, sizeof(err)), -ENOENT);
	assert_non_null(strstr(err, "/nonexistent/file"));
	assert_int_equal(machine_config_load(&c, "/tmp", err, sizeof(err)), -EISDIR);
	assert_non_null(strstr(err, "/tmp"));
}

/* ---- boot ------------------------------------------------------------------------ */

static void expect_no_boot(const char *key1, const char *value1, const char *key2,
			   const char *value2, const char *says)
{
	struct machine_config c;
	struct machine m;

	machine_config_init(&c);
	assert_int_equal(set(&c, "arena-size", "64M"), 0);
	assert_int_equal(set(&c, key1, value1), 0);
	assert_int_equal(set(&c, key2, value2), 0);
	assert_int_not_equal(machine_boot(&m, &c, err, sizeof(err)), 0);
	if (!strstr(err, says))
		fail_msg("'%s' is not about '%s'", err, says);
	assert_null(m.phys);
	assert_null(m.virt);
	machine_config_clear(&c);
}

static void test_refused_machines(void **state)
{
	(void)state;
	expect_no_boot("nodes", "2", "node-sizes", "64M", "node-sizes");
	expect_no_boot("nodes", "2", "node-sizes", "64M,64M", "arena-size");
	expect_no_boot("nodes", "3", "distances", "10 20;20 10", "distances");
	expect_no_boot("nodes", "1", "reserve", "4K@64M", "reserve");
	expect_no_boot("nodes", "64", "zone-dma", "1G", "64 MiB");
}

static void test_boots(void **state)
{
	struct machine_config c;
	struct machine m;

	(void)state;
	machine_config_init(&c);
	assert_int_equal(set(&c, "nodes", "2"), 0);
	assert_int_equal(set(&c, "node-sizes", "64M,128M"), 0);
	assert_int_equal(set(&c, "reserve", "1M@8M"), 0);
	assert_int_equal(set(&c, "zero-pool", "16M"), 0);
	assert_int_equal(machine_boot(&m, &c, err, sizeof(err)), 0);
	machine_config_clear(&c);
	assert_int_equal(m.config.arena_size, 192 << 20);
	assert_int_equal(phys_nr_frames(m.phys), 192 << 8);
	assert_int_equal(phys_nr_nodes(m.phys), 2);
	assert_int_equal(state_tunable(&m.state, TUNABLE_ZERO_POOL_KBYTES), 16 << 10);
	assert_true(machine_is_valid(&m));
	machine_shutdown(&m);
	assert_null(m.phys);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_values),
		cmocka_unit_test(test_bad_values),
		cmocka_unit_test(test_long_socket_path),
		cmocka_unit_test(test_unknown_key),
		cmocka_unit_test(test_good_files),
		cmocka_unit_test(test_bad_files),
		cmocka_unit_test(test_no_file),
		cmocka_unit_test(test_refused_machines),
		cmocka_unit_test(test_boots),
	};
	int fd = mkstemp(path), failed;

	if (fd < 0)
		return 1;
	close(fd);
	log_set_level(LOG_LEVEL_ERR);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return failed;
}
