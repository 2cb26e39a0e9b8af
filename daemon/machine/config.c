/* SPDX-License-Identifier: MIT */
/*
 * config.c - one table of keys (config.def), one setter for each type, one reader of INI files.
 *
 * A setter parses the whole value before it changes the field, so a refused value leaves the
 * configuration as it was. Strings of the configuration are its own copies.
 */
#include "daemon/machine/config.h"

#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/mem.h"
#include "base/parse.h"

#define SOCKET_PATH_MAX 103 /* what a unix socket takes, less the suffix under which it is made */
#define PAGEBLOCK_BYTES ((uint64_t)PAGEBLOCK_PAGES << ARENA_PAGE_SHIFT)

/* ---- setters: ARENA_E_INVALID if the value is not accepted, -ENOMEM -------------- */

static int set_string(void *field, const char *value)
{
	char **string = field;
	char *copy = mem_strdup(value);

	if (!copy)
		return -ENOMEM;
	free(*string);
	*string = copy;
	return 0;
}

static int set_PATH(void *field, const char *value)
{
	if (!*value || strlen(value) > SOCKET_PATH_MAX)
		return ARENA_E_INVALID;
	return set_string(field, value);
}

static int set_SIZE(void *field, const char *value)
{
	return parse_size(value, field);
}

static int set_ARENA_SIZE(void *field, const char *value)
{
	uint64_t size;

	if (parse_size(value, &size) || size > MACHINE_ARENA_SIZE_MAX ||
	    (size && size < MACHINE_ARENA_SIZE_MIN))
		return ARENA_E_INVALID;
	*(uint64_t *)field = size;
	return 0;
}

static int set_SECTION_SIZE(void *field, const char *value)
{
	uint64_t size;

	if (parse_size(value, &size) || (size & (size - 1)) || (size && size < PAGEBLOCK_BYTES))
		return ARENA_E_INVALID;
	*(uint64_t *)field = size;
	return 0;
}

static int set_ZERO_POOL(void *field, const char *value)
{
	uint64_t size;

	/* The tunable behind it counts kB in 32 bits. */
	if (parse_size(value, &size) || size >> 10 > UINT32_MAX)
		return ARENA_E_INVALID;
	*(uint64_t *)field = size;
	return 0;
}

static int set_GROUP(void *field, const char *value)
{
	uint64_t number;
	struct group *group;

	if (strcmp(value, "none") == 0) {
		*(uint64_t *)field = 0;
		return 0;
	}
	if (parse_u64(value, &number) == 0) {
		if (number >= UINT32_MAX)
			return ARENA_E_INVALID;
	} else {
		group = getgrnam(value);
		if (!group)
			return ARENA_E_INVALID;
		number = group->gr_gid;
	}
	*(uint64_t *)field = number + 1;
	return 0;
}

static int set_NODES(void *field, const char *value)
{
	uint64_t n;

	if (parse_u64(value, &n) || n > NUMA_MAX_NODES)
		return ARENA_E_INVALID;
	*(uint32_t *)field = (uint32_t)n;
	return 0;
}

/* Sets *item to the next of a list with commas and ends it there; false at the end. */
static bool next_item(char **list, char **item)
{
	*item = strsep(list, ",");
	return *item;
}

int config_parse_sizes(const char *text, uint64_t *out, unsigned max, unsigned *nr)
{
	_cleanup_(freep) char *copy = mem_strdup(text);
	char *list = copy, *item;

	if (!copy)
		return -ENOMEM;
	for (*nr = 0; next_item(&list, &item); (*nr)++)
		if (*nr == max || parse_size(item, &out[*nr]) || !out[*nr] ||
		    !IS_ALIGNED(out[*nr], PAGEBLOCK_BYTES))
			return ARENA_E_INVALID;
	return 0;
}

int config_parse_ranges(const char *text, struct phys_range *out, unsigned max, unsigned *nr)
{
	_cleanup_(freep) char *copy = mem_strdup(text);
	char *list = copy, *item;

	if (!copy)
		return -ENOMEM;
	for (*nr = 0; next_item(&list, &item); (*nr)++) {
		char *size = strsep(&item, "@");

		if (*nr == max || !item || parse_size(size, &out[*nr].size) ||
		    parse_size(item, &out[*nr].base) || !out[*nr].size ||
		    !IS_ALIGNED(out[*nr].size | out[*nr].base, ARENA_PAGE_SIZE))
			return ARENA_E_INVALID;
	}
	return 0;
}

static int set_SIZES(void *field, const char *value)
{
	uint64_t sizes[NUMA_MAX_NODES];
	unsigned nr;
	int r = config_parse_sizes(value, sizes, NUMA_MAX_NODES, &nr);

	return r ? r : set_string(field, value);
}

static int set_RANGES(void *field, const char *value)
{
	struct phys_range ranges[PHYS_MAX_RANGES];
	unsigned nr;
	int r = config_parse_ranges(value, ranges, PHYS_MAX_RANGES, &nr);

	return r ? r : set_string(field, value);
}

/* Is it a matrix of any number of nodes? Whether of ours is known when all is set. */
static int set_DISTANCES(void *field, const char *value)
{
	for (unsigned nodes = 1; nodes <= NUMA_MAX_NODES; nodes++) {
		struct numa_topology t;

		if (!numa_topology_simulate(&t, nodes, 1) && !numa_parse_distances(&t, value))
			return set_string(field, value);
	}
	return ARENA_E_INVALID;
}

static int set_ISOLATION(void *field, const char *value)
{
	bool process = strcmp(value, "process") == 0;

	if (!process && strcmp(value, "uid") != 0)
		return ARENA_E_INVALID;
	*(bool *)field = process;
	return 0;
}

static int set_WATCHDOG(void *field, const char *value)
{
	uint64_t n;

	if (parse_u64(value, &n) || n > 86400)
		return ARENA_E_INVALID;
	*(uint32_t *)field = (uint32_t)n;
	return 0;
}

static int set_YES_NO(void *field, const char *value)
{
	return parse_bool(value, field);
}

static int set_LOG_LEVEL(void *field, const char *value)
{
	return log_level_parse(value, field) ? 0 : ARENA_E_INVALID;
}

static int set_MOUNT(void *field, const char *value)
{
	return strcmp(value, "none") == 0 ? set_string(field, value) : ARENA_E_INVALID;
}

/* ---- the table ------------------------------------------------------------------- */

#define ARGUMENT_PATH "PATH"
#define ARGUMENT_SIZE "SIZE"
#define ARGUMENT_ARENA_SIZE "SIZE"
#define ARGUMENT_SECTION_SIZE "SIZE"
#define ARGUMENT_ZERO_POOL "SIZE"
#define ARGUMENT_GROUP "GROUP|none"
#define ARGUMENT_NODES "N"
#define ARGUMENT_SIZES "SIZE,..."
#define ARGUMENT_RANGES "SIZE@BASE,..."
#define ARGUMENT_DISTANCES "ROWS"
#define ARGUMENT_ISOLATION "uid|process"
#define ARGUMENT_YES_NO "yes|no"
#define ARGUMENT_WATCHDOG "SECONDS"
#define ARGUMENT_LOG_LEVEL "LEVEL"
#define ARGUMENT_MOUNT "DIR|none"

const struct config_key config_keys[] = {
#define CONFIG(key, type, field, accepted, help) {key, ARGUMENT_##type, accepted, help},
#include "daemon/machine/config.def"
#undef CONFIG
};
const unsigned nr_config_keys = ARRAY_SIZE(config_keys);

static const struct {
	int (*set)(void *field, const char *value);
	size_t offset;
} fields[] = {
#define CONFIG(key, type, field, accepted, help) \
	{set_##type, offsetof(struct machine_config, field)},
#include "daemon/machine/config.def"
#undef CONFIG
};

void machine_config_init(struct machine_config *c)
{
	*c = (struct machine_config){
		.nodes = 2,
		.hugepages = true,
		.zero_pool = UINT64_MAX,
		.log_level = LOG_LEVEL_INFO,
		.supervisor = true,
		.watchdog = 30,
	};
}

void machine_config_clear(struct machine_config *c)
{
	free(c->socket);
	free(c->node_sizes);
	free(c->distances);
	free(c->reserve);
	free(c->mount);
	machine_config_init(c);
}

/* "no key 'x'; the keys are socket, arena-size, ..." */
static void describe_keys(const char *key, char *err, size_t size)
{
	int n = snprintf(err, size, "no key '%s'; the keys are", key);

	for (unsigned i = 0; i < nr_config_keys && n >= 0 && (size_t)n < size; i++)
		n += snprintf(err + n, size - (size_t)n, "%s %s", i ? "," : "",
			      config_keys[i].name);
}

int machine_config_set(struct machine_config *c, const char *key, const char *value, char *err,
		       size_t err_size)
{
	for (unsigned i = 0; i < nr_config_keys; i++) {
		int r;

		if (strcmp(config_keys[i].name, key) != 0)
			continue;
		r = fields[i].set((char *)c + fields[i].offset, value);
		if (r > 0)
			snprintf(err, err_size, "%s: '%s' is not accepted; accepted: %s", key,
				 value, config_keys[i].accepted);
		else if (r < 0)
			snprintf(err, err_size, "%s: %s", key, error_text(r));
		return r;
	}
	describe_keys(key, err, err_size);
	return ARENA_E_NOT_FOUND;
}

/* ---- INI files ------------------------------------------------------------------- */

/*
 * inih asks `read_line` for lines and gives `take_pair` what it found in the last one, so the
 * reader knows the number of the line a pair stands on. After the first mistake there are no
 * more lines.
 */
struct ini {
	struct machine_config *config;
	const char *path;
	FILE *file;
	unsigned line;
	int result;
	char *err;
	size_t err_size;
	char *text; /* of getline() */
	size_t text_size;
};

static void ini_mistake(struct ini *ini, int result, const char *what)
{
	if (ini->result)
		return;
	if (ini->line)
		snprintf(ini->err, ini->err_size, "%s:%u: %s", ini->path, ini->line, what);
	else /* it could not be read at all */
		snprintf(ini->err, ini->err_size, "%s: %s", ini->path, what);
	ini->result = result;
}

/* Sections are looked at here because inih is silent about those without keys. */
static bool section_accepted(struct ini *ini, const char *text)
{
	size_t n = strcspn(text, "]");

	if (*text != '[' || strncmp(text, "[arenad]", n + 1) == 0)
		return true;
	ini_mistake(ini, ARENA_E_INVALID, "the only section is [arenad]");
	return false;
}

static char *read_line(char *buf, int size, void *data)
{
	struct ini *ini = data;
	ssize_t n;
	char *text;

	if (ini->result)
		return NULL;
	errno = 0;
	n = getline(&ini->text, &ini->text_size, ini->file);
	if (n < 0) {
		if (errno)
			ini_mistake(ini, -errno, error_text(-errno));
		return NULL;
	}
	ini->line++;
	/* An indented line would continue the one before it; here it is a line of its own. */
	text = ini->text + strspn(ini->text, " \t");
	if (!section_accepted(ini, text))
		return NULL;
	if (strlen(text) >= (size_t)size) {
		ini_mistake(ini, ARENA_E_INVALID, "the line is too long");
		return NULL;
	}
	return strcpy(buf, text);
}

static int take_pair(void *data, const char *section, const char *key, const char *value)
{
	struct ini *ini = data;
	char what[1024];
	int r = machine_config_set(ini->config, key, value, what, sizeof(what));

	(void)section;
	if (r)
		ini_mistake(ini, r, what);
	return !r;
}

int machine_config_load(struct machine_config *c, const char *path, char *err, size_t err_size)
{
	_cleanup_(fclosep) FILE *file = fopen(path, "re");
	struct ini ini = {
		.config = c, .path = path, .file = file, .err = err, .err_size = err_size};
	int bad_line;

	if (!file) {
		int r = -errno;

		snprintf(err, err_size, "%s: %s", path, error_text(r));
		return r;
	}
	bad_line = ini_parse_stream(read_line, &ini, take_pair, &ini);
	/* What inih itself could not read: it goes on, and says in the end where it was. */
	if (bad_line > 0 && !ini.result)
		ini.line = (unsigned)bad_line;
	if (bad_line)
		ini_mistake(&ini, ARENA_E_INVALID, "not 'key = value', a comment or [arenad]");
	free(ini.text);
	return ini.result;
}
