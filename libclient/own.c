/* SPDX-License-Identifier: MIT */
/* own.c - own.h, a mapping for each. The fault point "mem" is that of the heap. */
#include "libclient/own.h"

#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"

static size_t whole_pages(size_t size)
{
	return ALIGN_UP(size, (size_t)os_page_size());
}

void *own_alloc(size_t size)
{
	void *p;

	return faultpoint("mem") || os_anonymous(whole_pages(size), &p) < 0 ? NULL : p;
}

void own_free(void *p, size_t size)
{
	if (p)
		os_unmap(p, whole_pages(size));
}
