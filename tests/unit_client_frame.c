/* SPDX-License-Identifier: MIT */
/* Messages as bytes, packets with descriptors, and memory for unpacking that runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/os.h"
#include "base/prng.h"
#include "base/util.h"
#include "proto/frame.h"
#include "proto/numbers.h"

static unsigned open_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void make_pair(int sv[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
}

static void messages_survive(void **state)
{
	Arena__Request request = ARENA__REQUEST__INIT, *got;
	Arena__Fault fault = ARENA__FAULT__INIT;
	char buf[ARENA_MAILBOX_PAYLOAD], memory[FRAME_ARENA_MAILBOX];
	struct frame_arena fa = {memory, sizeof(memory), 0};
	size_t len;

	(void)state;
	fault.address = UINT64_C(0x200000001000);
	fault.access = 2;
	request.id = 7;
	request.call_case = ARENA__REQUEST__CALL_FAULT;
	request.fault = &fault;
	assert_int_equal(frame_pack_request(&request, buf, sizeof(buf), &len), 0);
	assert_int_equal(frame_unpack_request(buf, len, &fa, &got), 0);
	assert_int_equal(got->id, 7);
	assert_int_equal(got->call_case, ARENA__REQUEST__CALL_FAULT);
	assert_true(got->fault->address == UINT64_C(0x200000001000));
	assert_int_equal(got->fault->access, 2);
	assert_true((char *)got >= memory && (char *)got < memory + sizeof(memory));
	assert_true((char *)got->fault >= memory && (char *)got->fault < memory + sizeof(memory));
	/* One byte short of what it takes. */
	assert_int_equal(frame_pack_request(&request, buf, len - 1, &len), -EMSGSIZE);
}

static void replies_survive(void **state)
{
	Arena__Reply reply = ARENA__REPLY__INIT, *got;
	Arena__AttrReadReply data = ARENA__ATTR_READ_REPLY__INIT;
	char *buf = malloc(ARENA_SOCKET_MAX_MESSAGE), *memory = malloc(FRAME_ARENA_SOCKET);
	struct frame_arena fa = {memory, FRAME_ARENA_SOCKET, 0};
	uint8_t *text = calloc(1, 60000);
	size_t len;

	(void)state;
	memset(text, 'x', 60000);
	data.data.data = text;
	data.data.len = 60000;
	data.eof = 1;
	reply.error = EAGAIN;
	reply.result_case = ARENA__REPLY__RESULT_ATTR_READ;
	reply.attr_read = &data;
	assert_int_equal(frame_pack_reply(&reply, buf, ARENA_SOCKET_MAX_MESSAGE, &len), 0);
	assert_int_equal(frame_unpack_reply(buf, len, &fa, &got), 0);
	assert_int_equal(got->error, EAGAIN);
	assert_int_equal(got->attr_read->data.len, 60000);
	assert_memory_equal(got->attr_read->data.data, text, 60000);
	/* The message does not refer to the bytes it came from. */
	memset(buf, 0, len);
	assert_memory_equal(got->attr_read->data.data, text, 60000);
	free(text);
	free(buf);
	free(memory);
}

static void memory_runs_out_cleanly(void **state)
{
	Arena__Request request = ARENA__REQUEST__INIT, *got;
	Arena__ShmOpen open_call = ARENA__SHM_OPEN__INIT;
	char buf[1000], memory[1024 + 16];
	size_t len, size;
	bool once = false;

	(void)state;
	open_call.name = (char *)"a name of some length";
	request.call_case = ARENA__REQUEST__CALL_SHM_OPEN;
	request.shm_open = &open_call;
	assert_int_equal(frame_pack_request(&request, buf, sizeof(buf), &len), 0);
	for (size = 0; size <= 1024; size++) {
		struct frame_arena fa = {memory, size, 0};
		int r;

		memory[size] = 0x5a;
		r = frame_unpack_request(buf, len, &fa, &got);
		assert_true(fa.used <= size);
		assert_int_equal(memory[size], 0x5a);
		if (r == 0) {
			once = true;
			assert_string_equal(got->shm_open->name, "a name of some length");
		} else {
			/* More memory never makes it fail again. */
			assert_false(once);
			assert_int_equal(r, -EBADMSG);
			assert_null(got);
		}
	}
	assert_true(once);
}

static void allocations_are_aligned(void **state)
{
	char memory[256];
	struct frame_arena fa = {memory + 1, sizeof(memory) - 1, 0};
	ProtobufCAllocator a = frame_allocator(&fa);
	void *p;
	int n = 0;

	(void)state;
	while ((p = a.alloc(a.allocator_data, 1))) {
		assert_true(IS_ALIGNED((uintptr_t)p, 16));
		assert_true((char *)p >= fa.buf && (char *)p < fa.buf + fa.size);
		n++;
	}
	assert_true(n >= 14);
	fa.used = 0;
	assert_null(a.alloc(a.allocator_data, SIZE_MAX));
	assert_null(a.alloc(a.allocator_data, 256));
}

static void noise_is_refused_or_harmless(void **state)
{
	struct prng prng = {42};
	int good = 0, bad = 0;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		char memory[FRAME_ARENA_MAILBOX], *bytes;
		struct frame_arena fa = {memory, sizeof(memory), 0};
		size_t len = prng_below(&prng, 64);
		Arena__Request *got;

		/* Exactly as long as the message, so that a sanitizer sees a read beyond it. */
		bytes = malloc(len + 1);
		for (size_t j = 0; j < len; j++)
			bytes[j] = (char)(prng_below(&prng, 3) ? prng_below(&prng, 24)
							       : prng_next(&prng));
		if (frame_unpack_request(bytes, len, &fa, &got) == 0)
			good++;
		else
			bad++;
		assert_true(fa.used <= fa.size);
		free(bytes);
	}
	assert_true(good > 0 && bad > 0);
}

/* ---- the short way, against the library ---- */

static struct prng prng = {7};

static bool plain(const ProtobufCFieldDescriptor *f)
{
	const ProtobufCMessageDescriptor *d = f->descriptor;

	for (unsigned i = 0; i < d->n_fields; i++)
		if (d->fields[i].type == PROTOBUF_C_TYPE_STRING ||
		    d->fields[i].type == PROTOBUF_C_TYPE_BYTES ||
		    d->fields[i].type == PROTOBUF_C_TYPE_BOOL)
			return false;
	return true;
}

static uint64_t any_number(void)
{
	static const uint64_t edges[] = {0,
					 1,
					 127,
					 128,
					 INT32_MAX,
					 UINT32_MAX,
					 UINT32_MAX + UINT64_C(1),
					 INT64_MAX,
					 UINT64_MAX,
					 UINT64_C(1) << 63};

	return prng_below(&prng, 3) ? prng_next(&prng) >> prng_below(&prng, 64)
				    : edges[prng_below(&prng, ARRAY_SIZE(edges))];
}

static void any_numbers(const ProtobufCMessageDescriptor *d, void *message)
{
	for (unsigned i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];
		void *p = (char *)message + f->offset;

		if (f->type == PROTOBUF_C_TYPE_UINT32 || f->type == PROTOBUF_C_TYPE_INT32)
			*(uint32_t *)p = (uint32_t)any_number();
		else if (f->type == PROTOBUF_C_TYPE_UINT64 || f->type == PROTOBUF_C_TYPE_INT64)
			*(uint64_t *)p = any_number();
	}
}

/* A Request or Reply with this field of its oneof. */
static size_t any_message(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
			  uint8_t *bytes, bool *short_way)
{
	_Alignas(16) char outer[256], inner[256];
	ProtobufCMessage *message = (void *)outer;
	uint8_t fast[256];
	ptrdiff_t n;
	size_t len;

	protobuf_c_message_init(d, outer);
	any_numbers(d, outer);
	if (f) {
		protobuf_c_message_init(f->descriptor, inner);
		any_numbers(f->descriptor, inner);
		*(unsigned *)(void *)(outer + f->quantifier_offset) = f->id;
		*(void **)(void *)(outer + f->offset) = inner;
	}
	len = protobuf_c_message_pack(message, bytes);
	assert_true(len <= sizeof(fast));
	n = numbers_pack(message, fast, sizeof(fast));
	*short_way = n >= 0;
	if (n >= 0) {
		assert_int_equal(n, len);
		assert_memory_equal(fast, bytes, len);
	}
	/* In a tight place it declines or fits, and never goes beyond. */
	for (size_t size = 0; size < sizeof(fast); size += 1 + prng_below(&prng, 20)) {
		memset(fast, 0x5a, sizeof(fast));
		n = numbers_pack(message, fast, size);
		assert_true(n == -1 || ((size_t)n == len && len <= size));
		for (size_t i = size; i < sizeof(fast); i++)
			assert_int_equal(fast[i], 0x5a);
	}
	return len;
}

/* What the short way reads the library reads as well, and as the same. */
static bool read_both(const ProtobufCMessageDescriptor *d, const uint8_t *bytes, size_t len)
{
	_Alignas(16) char memory[2][2048];
	struct frame_arena fa[2] = {{memory[0], 2048, 0}, {memory[1], 2048, 0}};
	ProtobufCAllocator allocator[2] = {frame_allocator(&fa[0]), frame_allocator(&fa[1])};
	ProtobufCMessage *got = numbers_unpack(d, bytes, len, &allocator[0]), *want;
	uint8_t again[2][512];
	size_t n;

	if (!got)
		return false;
	want = protobuf_c_message_unpack(d, &allocator[1], len, bytes);
	assert_non_null(want);
	n = protobuf_c_message_get_packed_size(want);
	assert_true(n <= sizeof(again[0]));
	assert_int_equal(protobuf_c_message_get_packed_size(got), n);
	protobuf_c_message_pack(want, again[0]);
	protobuf_c_message_pack(got, again[1]);
	assert_memory_equal(again[0], again[1], n);
	return true;
}

static void the_short_way_is_the_librarys(void **state)
{
	static const ProtobufCMessageDescriptor *const kinds[] = {&arena__request__descriptor,
								  &arena__reply__descriptor};
	unsigned read = 0, negative = 0;

	(void)state;
	for (unsigned round = 0; round < 40000; round++) {
		const ProtobufCMessageDescriptor *d = kinds[round % 2];
		const ProtobufCFieldDescriptor *f = &d->fields[prng_below(&prng, d->n_fields)];
		uint8_t bytes[512];
		bool short_way;
		size_t len;

		if (f->type != PROTOBUF_C_TYPE_MESSAGE)
			f = NULL;
		len = any_message(d, f, bytes, &short_way);
		/* Of what is numbered without a gap. */
		assert_int_equal(short_way,
				 !f || (plain(f) && f->id - 1 == (size_t)(f - d->fields)));
		if (!short_way)
			continue;
		/* It reads what it writes, but for negative numbers of 32 bits. */
		if (read_both(d, bytes, len))
			read++;
		else
			negative++;
		for (unsigned i = 0; i < 8 && len; i++) {
			bytes[prng_below(&prng, len)] = (uint8_t)prng_next(&prng);
			read_both(d, bytes, prng_below(&prng, 4) ? len : prng_below(&prng, len));
		}
	}
	assert_true(read > 20000 && negative < read / 4);
}

/* What numbers.c relies on: numbers first, then one oneof to the end. */
static void messages_are_numbered_as_the_short_way_wants(void **state)
{
	static const ProtobufCMessageDescriptor *const kinds[] = {&arena__request__descriptor,
								  &arena__reply__descriptor};

	(void)state;
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		const ProtobufCMessageDescriptor *d = kinds[k];
		const ProtobufCFieldDescriptor *last = &d->fields[d->n_fields - 1];
		bool cases = false;

		assert_int_equal(last->flags, PROTOBUF_C_FIELD_FLAG_ONEOF);
		for (unsigned i = 0; i < d->n_fields; i++) {
			const ProtobufCFieldDescriptor *f = &d->fields[i];

			cases |= f->flags == PROTOBUF_C_FIELD_FLAG_ONEOF;
			assert_int_equal(f->flags, cases ? PROTOBUF_C_FIELD_FLAG_ONEOF : 0);
			assert_int_equal(f->type == PROTOBUF_C_TYPE_MESSAGE, cases);
			if (cases)
				assert_int_equal(f->quantifier_offset, last->quantifier_offset);
		}
	}
}

static void the_short_way_knows_its_limits(void **state)
{
	static const struct {
		size_t len;
		uint8_t bytes[16];
		bool read;
	} cases[] = {
		{0, {0}, true},
		{2, {0x22, 0x00}, true},              /* null */
		{4, {0x22, 0x00, 0x2a, 0x00}, false}, /* null and bye */
		{4, {0x22, 0x00, 0x22, 0x00}, false}, /* null twice */
		{2, {0x22, 0x01}, false},             /* too long */
		{3, {0x22, 0x80, 0x00}, true},        /* a length of two bytes */
		{7, {0x22, 0x80, 0x80, 0x80, 0x80, 0x80, 0}, false},
		{3, {0x08, 0x01, 0x32}, false},       /* ends in a tag's middle */
		{2, {0x08, 0x05}, true},              /* id */
		{4, {0x08, 0x05, 0x08, 0x06}, true},  /* twice: the last one counts */
		{2, {0x0a, 0x00}, false},             /* id as bytes */
		{2, {0x20, 0x00}, false},             /* null as a number */
		{3, {0xf8, 0x01, 0x01}, false},       /* field 31 */
		{4, {0x32, 0x02, 0x28, 0x01}, false}, /* field 5 of a fault */
		{4, {0x32, 0x02, 0x10, 0x01}, true},
		{8, {0x32, 0x06, 0x10, 0x80, 0x80, 0x80, 0x80, 0x20}, false}, /* 33 bits for 32 */
		{4, {0x12, 0x02, 0x08, 0x01}, true},       /* hello, without its strings */
		{5, {0x12, 0x03, 0x1a, 0x01, 'x'}, false}, /* hello, with one */
		{4, {0x88, 0x80, 0x00, 0x01}, false},      /* a tag of three bytes */
	};

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		assert_int_equal(
			read_both(&arena__request__descriptor, cases[i].bytes, cases[i].len),
			cases[i].read);
}

static void descriptors_travel(void **state)
{
	int sv[2], send_fds[2], got[4] = {-1, -1, -1, -1};
	struct stat sent, received;
	unsigned nr = 9;
	char buf[16];

	(void)state;
	make_pair(sv);
	send_fds[0] = os_memfd("a", 4096);
	send_fds[1] = os_memfd("b", 8192);
	assert_int_equal(frame_send(sv[0], "hello", 5, send_fds, 2), 0);
	assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), got, 4, &nr, 0), 5);
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(nr, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(fstat(send_fds[i], &sent), 0);
		assert_int_equal(fstat(got[i], &received), 0);
		assert_true(sent.st_ino == received.st_ino);
		assert_true(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
		close(send_fds[i]);
		close(got[i]);
	}
	close(sv[0]);
	assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), got, 4, &nr, 0), 0);
	assert_int_equal(frame_send(sv[1], "x", 1, NULL, 0), -EPIPE);
	close(sv[1]);
}

static void surplus_descriptors_are_closed(void **state)
{
	int sv[2], fds[ARENA_SOCKET_MAX_FDS + 2], got[1];
	unsigned before, nr;
	char buf[16];

	(void)state;
	make_pair(sv);
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = sv[0];
	before = open_descriptors();
	assert_int_equal(frame_send(sv[0], "x", 1, fds, 1), 0);
	assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), NULL, 0, NULL, 0), -EPROTO);
	assert_int_equal(frame_send(sv[0], "x", 1, fds, ARENA_SOCKET_MAX_FDS), 0);
	assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), got, 1, &nr, 0), -EPROTO);
	assert_int_equal(nr, 0);
	assert_int_equal(frame_send(sv[0], "x", 1, fds, ARENA_SOCKET_MAX_FDS + 1), -EINVAL);
	assert_int_equal(open_descriptors(), before);

	/* More than a sender of ours sends: the kernel cuts them off. */
	{
		char control[CMSG_SPACE(sizeof(fds))] = {0};
		struct iovec iov = {(char *)"x", 1};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(fds));
		memcpy(CMSG_DATA(c), fds, sizeof(fds));
		assert_int_equal(sendmsg(sv[0], &msg, 0), 1);
		assert_int_equal(
			frame_recv(sv[1], buf, sizeof(buf), fds, ARENA_SOCKET_MAX_FDS, &nr, 0),
			-EPROTO);
		assert_int_equal(open_descriptors(), before);
	}
	close(sv[0]);
	close(sv[1]);
}

static void lengths_are_checked(void **state)
{
	static char large[ARENA_SOCKET_MAX_MESSAGE + 1];
	int sv[2], fd, got[2];
	unsigned nr, before;
	char buf[8];

	(void)state;
	make_pair(sv);
	before = open_descriptors();
	fd = sv[0];
	assert_int_equal(frame_recv(sv[1], buf, 8, NULL, 0, NULL, FRAME_DONTWAIT), -EAGAIN);
	assert_int_equal(frame_send(sv[0], large, sizeof(large), NULL, 0), -EMSGSIZE);
	assert_int_equal(frame_send(sv[0], large, 0, NULL, 0), -EINVAL);
	assert_int_equal(frame_send(sv[0], "123456789", 9, &fd, 1), 0);
	assert_int_equal(frame_recv(sv[1], buf, 8, got, 2, &nr, 0), -EMSGSIZE);
	assert_int_equal(nr, 0);
	assert_int_equal(open_descriptors(), before);
	/* The next packet is whole again. */
	assert_int_equal(frame_send(sv[0], "12345678", 8, NULL, 0), 0);
	assert_int_equal(frame_recv(sv[1], buf, 8, got, 2, &nr, 0), 8);
	/* A peer that does not read makes the sender wait, or not. */
	while ((int)(nr = (unsigned)frame_send_flags(sv[0], large, 65536, NULL, 0,
						     FRAME_DONTWAIT)) == 0)
		;
	assert_int_equal((int)nr, -EAGAIN);
	close(sv[0]);
	close(sv[1]);
}

static void packets_stay_until_dropped(void **state)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Null null = ARENA__NULL__INIT;
	char packet[64], buf[64];
	unsigned before;
	int sv[2], fd;
	size_t len;

	(void)state;
	make_pair(sv);
	request.id = UINT64_C(0x8000000000000081);
	request.call_case = ARENA__REQUEST__CALL_NULL;
	request.null = &null;
	assert_int_equal(frame_pack_request(&request, packet, sizeof(packet), &len), 0);
	assert_true(frame_peek_id(packet, len) == request.id);
	for (size_t cut = 0; cut < 10; cut++)
		assert_true(frame_peek_id(packet, cut) == 0);
	assert_int_equal(frame_peek_id("\x12\x00", 2), 0);
	assert_int_equal(frame_send(sv[0], packet, len, NULL, 0), 0);
	assert_int_equal(frame_send(sv[0], "next", 4, NULL, 0), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), NULL, 0, NULL, FRAME_PEEK),
				 (int)len);
	frame_drop(sv[1]);
	assert_int_equal(frame_recv(sv[1], buf, sizeof(buf), NULL, 0, NULL, 0), 4);
	/* What a packet carries goes with it, and a look at it leaves nothing open. */
	before = open_descriptors();
	fd = sv[0];
	assert_int_equal(frame_send(sv[0], "x", 1, &fd, 1), 0);
	assert_int_equal(frame_recv(sv[1], buf, 8, NULL, 0, NULL, FRAME_PEEK), -EPROTO);
	frame_drop(sv[1]);
	frame_drop(sv[1]);
	assert_int_equal(frame_recv(sv[1], buf, 8, NULL, 0, NULL, FRAME_DONTWAIT), -EAGAIN);
	assert_int_equal(open_descriptors(), before);
	close(sv[0]);
	close(sv[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_survive),
		cmocka_unit_test(replies_survive),
		cmocka_unit_test(memory_runs_out_cleanly),
		cmocka_unit_test(allocations_are_aligned),
		cmocka_unit_test(noise_is_refused_or_harmless),
		cmocka_unit_test(messages_are_numbered_as_the_short_way_wants),
		cmocka_unit_test(the_short_way_is_the_librarys),
		cmocka_unit_test(the_short_way_knows_its_limits),
		cmocka_unit_test(descriptors_travel),
		cmocka_unit_test(surplus_descriptors_are_closed),
		cmocka_unit_test(lengths_are_checked),
		cmocka_unit_test(packets_stay_until_dropped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
