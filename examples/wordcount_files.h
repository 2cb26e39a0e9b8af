/* SPDX-License-Identifier: MIT */
/*
 * wordcount_files.h - the half of wordcount that has nothing to do with the arena: which files are
 * counted, and what wc says of them. Included by wordcount.c alone.
 */
#ifndef EXAMPLES_WORDCOUNT_FILES_H
#define EXAMPLES_WORDCOUNT_FILES_H

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_BYTES ((uint64_t)48 << 20) /* of documentation, if no files are named */
#define WC_BATCH 256

extern char **environ;

static int fail(const char *what)
{
	fprintf(stderr, "wordcount: %s: %s\n", what, strerror(errno));
	return 1;
}

/* ---- which files ------------------------------------------------------------------------- */

static struct {
	char **path;
	size_t nr, room;
	uint64_t bytes, limit;
} found;

static int add_file(const char *path, uint64_t size)
{
	if (found.nr == found.room) {
		size_t room = found.room ? found.room * 2 : 256;
		char **grown = realloc(found.path, room * sizeof(*grown));

		if (!grown)
			return -1;
		found.path = grown;
		found.room = room;
	}
	found.path[found.nr] = strdup(path);
	if (!found.path[found.nr])
		return -1;
	found.nr++;
	found.bytes += size;
	return 0;
}

/* Text: no NUL in its first block. Compressed files have one, or say it by their name. */
static bool looks_like_text(const char *path)
{
	static const char *const compressed[] = {".gz", ".xz", ".bz2", ".zst", ".Z", ".zip"};
	char block[4096];
	size_t len = strlen(path);
	ssize_t n;
	int fd;

	for (size_t i = 0; i < sizeof(compressed) / sizeof(*compressed); i++) {
		size_t l = strlen(compressed[i]);

		if (len > l && strcmp(path + len - l, compressed[i]) == 0)
			return false;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, block, sizeof(block));
	close(fd);
	return n > 0 && !memchr(block, '\0', (size_t)n);
}

static int visit(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)ftw;
	if (type != FTW_F || !S_ISREG(st->st_mode) || !looks_like_text(path))
		return 0;
	if (found.bytes + (uint64_t)st->st_size > found.limit)
		return 0;
	return add_file(path, (uint64_t)st->st_size);
}

static int find_files(const char *fallback)
{
	static const char *const directories[] = {"/usr/share/common-licenses", "/usr/share/doc"};
	struct stat st;

	found.limit = DEFAULT_BYTES;
	for (size_t i = 0; i < sizeof(directories) / sizeof(*directories); i++)
		if (nftw(directories[i], visit, 16, FTW_PHYS) < 0 && errno != ENOENT)
			return fail(directories[i]);
	if (!found.nr && fallback && stat(fallback, &st) == 0 &&
	    add_file(fallback, (uint64_t)st.st_size))
		return fail(fallback);
	if (!found.nr) {
		fprintf(stderr, "wordcount: no text files found below /usr/share/doc; name some\n");
		return 1;
	}
	return 0;
}

static int take_files(char **files, size_t nr_files)
{
	for (size_t i = 0; i < nr_files; i++) {
		struct stat st;

		if (stat(files[i], &st))
			return fail(files[i]);
		if (!S_ISREG(st.st_mode)) {
			fprintf(stderr, "wordcount: %s: not a regular file\n", files[i]);
			return 1;
		}
		if (add_file(files[i], (uint64_t)st.st_size))
			return fail(files[i]);
	}
	return 0;
}

/* ---- wc ---------------------------------------------------------------------------------- */

/* `wc -w -- files`; its last line begins with the total. */
static int wc_batch(char **files, size_t n, uint64_t *words)
{
	static char wc[] = "wc", w[] = "-w", dashes[] = "--", env_locale[] = "LC_ALL=C";
	char *argv[WC_BATCH + 4] = {wc, w, dashes};
	char path[4096 + 8], line[8192];
	char *env[] = {env_locale, path, NULL};
	posix_spawn_file_actions_t actions;
	int fds[2], status = 0, err;
	uint64_t last = 0;
	pid_t pid;
	FILE *out;

	memcpy(argv + 3, files, n * sizeof(*files));
	snprintf(path, sizeof(path), "PATH=%s", getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
	if (pipe2(fds, O_CLOEXEC))
		return fail("pipe");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
	err = posix_spawnp(&pid, wc, &actions, NULL, argv, env);
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	errno = err;
	out = err ? NULL : fdopen(fds[0], "r");
	if (!out) {
		close(fds[0]);
		return fail("cannot run wc");
	}
	while (fgets(line, sizeof(line), out))
		last = strtoull(line, NULL, 10);
	fclose(out);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	*words += last;
	if (!status)
		return 0;
	fprintf(stderr, "wordcount: wc failed\n");
	return 1;
}

static int run_wc(uint64_t *words)
{
	int r = 0;

	*words = 0;
	for (size_t i = 0; i < found.nr && !r; i += WC_BATCH)
		r = wc_batch(found.path + i, found.nr - i < WC_BATCH ? found.nr - i : WC_BATCH,
			     words);
	return r;
}

#endif
