/* SPDX-License-Identifier: MIT */
/* virt_file.h - files for the tests of the virt room, whose reading and writing can be made to fail. */
#ifndef TESTS_VIRT_FILE_H
#define TESTS_VIRT_FILE_H

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/store/store.h"
#include "daemon/virt/file.h"

static struct {
	uint64_t bad_read; /* reading this byte fails; UINT64_MAX: none does */
	int write_error, sync_error;
	unsigned reads, writes, syncs;
} bad = {.bad_read = UINT64_MAX};

static inline ssize_t bad_read(int fd, void *to, size_t n, uint64_t offset)
{
	bad.reads++;
	if (offset == bad.bad_read)
		return -EIO;
	return os_file_read(fd, to, offset < bad.bad_read ? MIN(n, bad.bad_read - offset) : n,
			    offset);
}

static inline ssize_t bad_write(int fd, const void *from, size_t n, uint64_t offset)
{
	bad.writes++;
	return bad.write_error ? bad.write_error : os_file_write(fd, from, n, offset);
}

static inline int bad_sync(int fd __unused_)
{
	bad.syncs++;
	return bad.sync_error;
}

static const struct file_ops bad_ops = {
	.read = bad_read, .write = bad_write, .sync = bad_sync, .size = os_file_size};

/* What byte `at` of a test's file is. */
static inline uint8_t file_byte(uint64_t at)
{
	return (uint8_t)(at * 13 + at / 4096 + 1);
}

static inline int file_make(uint64_t size)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t *p;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	if (!size)
		return fd;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(p != MAP_FAILED);
	for (uint64_t i = 0; i < size; i++)
		p[i] = file_byte(i);
	assert_int_equal(munmap(p, size), 0);
	return fd;
}

static inline uint8_t file_get(int fd, uint64_t at)
{
	uint8_t byte = 0;

	assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
	return byte;
}

static inline void file_put(int fd, uint64_t at, uint8_t byte)
{
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
}

/* A copy of the descriptor goes to the daemon, as with a packet. */
static inline int file_try_map(struct fake_client *c, int fd, uint64_t len, uint32_t prot,
			       uint32_t flags, int64_t offset, uint64_t *out)
{
	int copy = fd < 0 ? fd : dup(fd), r;
	struct vm_mmap_args args = {
		.len = len, .prot = prot, .flags = flags, .file = &copy, .offset = offset};

	r = vm_mmap(c->mm, &args, out);
	virt_file_close(c->m->virt, copy);
	return r;
}

static inline uint64_t file_map(struct fake_client *c, int fd, uint64_t len, uint32_t prot,
				uint32_t flags)
{
	uint64_t at = 0;

	assert_int_equal(file_try_map(c, fd, len, prot, flags, 0, &at), 0);
	return at;
}

#endif
