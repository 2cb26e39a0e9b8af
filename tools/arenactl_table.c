/* SPDX-License-Identifier: MIT */
/*
 * arenactl_table.c - ps and segments: a table of the tree, one line of headings and blanks between
 * fields, shown with its columns aligned. Fields are aligned to the right, the last to the left.
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "tools/arenactl.h"

#define MAX_COLUMNS 32

/* The next field of a line; *s moves behind it. NULL at the end of the line. */
static const char *next_field(const char **s, size_t *len)
{
	const char *field = *s + strspn(*s, " ");

	*len = strcspn(field, " \n");
	*s = field + *len;
	return *len ? field : NULL;
}

static const char *next_line(const char *s)
{
	s = strchr(s, '\n');
	return s ? s + 1 : NULL;
}

static void measure(const char *text, size_t width[MAX_COLUMNS])
{
	for (const char *line = text; line && *line; line = next_line(line)) {
		const char *s = line, *field;
		size_t len;

		for (size_t column = 0; column < MAX_COLUMNS && (field = next_field(&s, &len));
		     column++)
			width[column] = MAX(width[column], len);
	}
}

static void print_line(const char *line, const size_t width[MAX_COLUMNS])
{
	const char *s = line, *field;
	size_t len;

	for (size_t column = 0; column < MAX_COLUMNS && (field = next_field(&s, &len)); column++) {
		bool last = column + 1 == MAX_COLUMNS || !width[column + 1];

		printf("%s%*s%.*s", column ? "  " : "", last ? 0 : (int)(width[column] - len), "",
		       (int)len, field);
	}
	putchar('\n');
}

static int print_table(struct ctl *c, const char *path)
{
	size_t width[MAX_COLUMNS] = {0};
	size_t len;
	_cleanup_(freep) char *text = ctl_read(c, path, &len);

	if (!text)
		return CTL_FAILED;
	measure(text, width);
	for (const char *line = text; line && *line; line = next_line(line))
		print_line(line, width);
	return CTL_DONE;
}

int verb_ps(struct ctl *c, char **args __unused_)
{
	return print_table(c, "sys/kernel/mm/arena/clients");
}

int verb_segments(struct ctl *c, char **args __unused_)
{
	return print_table(c, "sys/kernel/mm/arena/segments");
}
