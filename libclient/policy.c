/* SPDX-License-Identifier: MIT */
/* policy.c - from which nodes the arena's memory comes. */
#include <errno.h>
#include <limits.h>
#include <stddef.h>

#include "libclient/calls.h"
#include "libclient/internal.h"

#define WORD_BITS (sizeof(unsigned long) * CHAR_BIT)
#define MAX_NODES 64u

/* As set_mempolicy(2) reads it: maxnode bits, of which the last does not count. */
static int read_nodes(const unsigned long *nodes, unsigned long maxnode, uint64_t *out)
{
	*out = 0;
	if (!nodes || maxnode <= 1)
		return 0;
	if (maxnode > 1ul << 16)
		return -EINVAL;
	for (unsigned long n = 0; n < maxnode - 1; n++) {
		if (!(nodes[n / WORD_BITS] >> n % WORD_BITS & 1))
			continue;
		if (n >= MAX_NODES)
			return -EINVAL;
		*out |= UINT64_C(1) << n;
	}
	return 0;
}

int arena_set_mempolicy(arena_t *a, int mode, const unsigned long *nodes, unsigned long maxnode)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__SetMempolicy call = ARENA__SET_MEMPOLICY__INIT;
	int r = read_nodes(nodes, maxnode, &call.nodes);

	if (r < 0)
		return client_return(r);
	if (mode < 0)
		return client_return(-EINVAL);
	call.mode = (uint32_t)mode;
	request.call_case = ARENA__REQUEST__CALL_SET_MEMPOLICY;
	request.set_mempolicy = &call;
	return client_plain_call(a, &request);
}
