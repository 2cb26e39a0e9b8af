/* SPDX-License-Identifier: MIT */
/*
 * config_text.c - what is told about the configuration, written from its table config.def:
 *
 *	config_text conf	arenad.conf, every key commented out
 *	config_text keys	the keys, as a part of arenad.conf(5)
 *	config_text options	the options, as a part of arenad(8)
 *
 * Each type of config.def has a show_TYPE() here: how its default is written in a file. A key whose
 * default cannot be written down is shown with an example.
 */
#include <stdio.h>
#include <string.h>

#include "daemon/machine/config.h"

#define COMMENT_COLUMNS 78

struct shown {
	char text[64];
	bool example; /* not the default */
};

/* ---- one for each type ---------------------------------------------------------------- */

static void show_text(struct shown *s, const char *text)
{
	snprintf(s->text, sizeof(s->text), "%s", text);
}

/* A string that is not set by default. */
static void show_string(struct shown *s, const void *field, const char *otherwise, bool example)
{
	const char *text = *(char *const *)field;

	s->example = !text && example;
	show_text(s, text ? text : otherwise);
}

static void show_PATH(struct shown *s, const void *field)
{
	show_string(s, field, "/run/arenad/socket", false);
}

static void show_MOUNT(struct shown *s, const void *field)
{
	show_string(s, field, "none", false);
}

static void show_SIZES(struct shown *s, const void *field)
{
	show_string(s, field, "6G,2G", true);
}

static void show_RANGES(struct shown *s, const void *field)
{
	show_string(s, field, "1M@0,4K@64M", true);
}

static void show_DISTANCES(struct shown *s, const void *field)
{
	show_string(s, field, "10 20;20 10", false);
}

static void show_SIZE(struct shown *s, const void *field)
{
	static const char *const units[] = {"", "K", "M", "G", "T"};
	uint64_t size = *(const uint64_t *)field;
	unsigned unit = 0;

	for (; size && size % 1024 == 0 && unit + 1 < ARRAY_SIZE(units); size /= 1024)
		unit++;
	snprintf(s->text, sizeof(s->text), "%llu%s", (unsigned long long)size, units[unit]);
}

static void show_ARENA_SIZE(struct shown *s, const void *field)
{
	show_SIZE(s, field);
}

static void show_SECTION_SIZE(struct shown *s, const void *field)
{
	show_SIZE(s, field);
}

/* What is not set is left to the tunable behind it. */
static void show_ZERO_POOL(struct shown *s, const void *field)
{
	static const uint64_t kbytes[] = {
#define TUNABLE(name, path, initial, min, max, text) [TUNABLE_##name] = (initial),
#include "arena/tunables.def"
#undef TUNABLE
	};
	uint64_t size = *(const uint64_t *)field;

	if (size == UINT64_MAX)
		size = kbytes[TUNABLE_ZERO_POOL_KBYTES] << 10;
	show_SIZE(s, &size);
}

static void show_NODES(struct shown *s, const void *field)
{
	snprintf(s->text, sizeof(s->text), "%u", *(const uint32_t *)field);
}

static void show_WATCHDOG(struct shown *s, const void *field)
{
	show_NODES(s, field);
}

/* A group that exists everywhere would be wrong nearly everywhere. */
static void show_GROUP(struct shown *s, const void *field)
{
	(void)field;
	show_text(s, "none");
}

static void show_YES_NO(struct shown *s, const void *field)
{
	show_text(s, *(const bool *)field ? "yes" : "no");
}

static void show_ISOLATION(struct shown *s, const void *field)
{
	show_text(s, *(const bool *)field ? "process" : "uid");
}

static void show_LOG_LEVEL(struct shown *s, const void *field)
{
#define LOG_LEVEL(name, number, text)                           \
	if (*(const enum log_level *)field == LOG_LEVEL_##name) \
		show_text(s, text);
	LOG_LEVELS(LOG_LEVEL)
#undef LOG_LEVEL
}

static const struct {
	void (*show)(struct shown *s, const void *field);
	size_t offset;
} fields[] = {
#define CONFIG(key, type, field, accepted, help) \
	{show_##type, offsetof(struct machine_config, field)},
#include "daemon/machine/config.def"
#undef CONFIG
};

static void show_default(struct shown *s, unsigned key)
{
	struct machine_config c;

	machine_config_init(&c);
	*s = (struct shown){.example = false};
	fields[key].show(s, (const char *)&c + fields[key].offset);
	machine_config_clear(&c);
}

/* ---- arenad.conf ---------------------------------------------------------------------- */

static void print_comment(const char *text)
{
	unsigned column = 0;

	while (*text) {
		unsigned n = (unsigned)strcspn(text, " ");

		if (!column || column + 1 + n > COMMENT_COLUMNS)
			column = (unsigned)printf("%s# ", column ? "\n" : "") - 1;
		else
			column += (unsigned)printf(" ");
		column += (unsigned)printf("%.*s", (int)n, text);
		text += n + strspn(text + n, " ");
	}
	printf("\n");
}

static void print_conf(void)
{
	print_comment("arenad.conf - configuration of arenad, see arenad.conf(5).");
	printf("#\n");
	print_comment(
		"Each line is 'key = value'. What is commented out here is the default, or an "
		"example where that is said. Sizes take K, M, G and T. The command line wins "
		"over this file. It is read at start. A worker that goes on with the memory of "
		"an earlier one keeps its size, nodes, zones and sections, whatever is said "
		"here; all else is new.");
	printf("\n[arenad]\n");
	for (unsigned i = 0; i < nr_config_keys; i++) {
		struct shown s;
		char text[512];

		show_default(&s, i);
		printf("\n");
		snprintf(text, sizeof(text), "%s.", config_keys[i].help);
		print_comment(text);
		snprintf(text, sizeof(text), "Accepted: %s.%s", config_keys[i].accepted,
			 s.example ? " An example:" : "");
		print_comment(text);
		printf("#%s = %s\n", config_keys[i].name, s.text);
	}
}

/* ---- parts of man pages --------------------------------------------------------------- */

/* roff reads a dash as a hyphen, a backslash as its own, and a dot or quote first as a request. */
static void print_roff(const char *text)
{
	for (; *text; text++) {
		if (*text == '-')
			printf("\\-");
		else if (*text == '\\')
			printf("\\e");
		else
			putchar(*text);
	}
}

static void print_item(const char *before, unsigned key, const char *between)
{
	printf(".TP\n\\fB%s", before);
	print_roff(config_keys[key].name);
	printf("\\fR%s\\fI", between);
	print_roff(config_keys[key].argument);
	printf("\\fR\n");
	print_roff(config_keys[key].help);
	printf(".\nAccepted: ");
	print_roff(config_keys[key].accepted);
	printf(".\n");
}

static void print_keys(void)
{
	for (unsigned i = 0; i < nr_config_keys; i++) {
		struct shown s;

		show_default(&s, i);
		print_item("", i, " = ");
		printf("%s: \\fB", s.example ? "Not set by default; an example" : "Default");
		print_roff(s.text);
		printf("\\fR.\n");
	}
}

static void print_options(void)
{
	for (unsigned i = 0; i < nr_config_keys; i++)
		print_item("\\-\\-", i, "=");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*print)(void);
	} parts[] = {{"conf", print_conf}, {"keys", print_keys}, {"options", print_options}};

	for (unsigned i = 0; argc == 2 && i < ARRAY_SIZE(parts); i++) {
		if (strcmp(argv[1], parts[i].name) != 0)
			continue;
		parts[i].print();
		return ferror(stdout) || fflush(stdout) ? 1 : 0;
	}
	fprintf(stderr, "usage: config_text conf|keys|options\n");
	return 2;
}
