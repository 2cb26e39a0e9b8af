/* SPDX-License-Identifier: MIT */
/*
 * Hostile clients that speak the protocol: every field of every message a mailbox may hold, at its
 * extremes, alone and together. The messages and their fields come from the generated descriptors,
 * so a new one is tested without a word here. Random parts print their seed; ARENA_TEST_SEED repeats one.
 */
#include "tests/service_peer.h"

#include <fcntl.h>

#include "base/prng.h"

static int setup(void **state)
{
	(void)state;
	return start_service(NULL);
}

static int teardown(void **state)
{
	(void)state;
	return stop_service();
}

struct values {
	uint64_t value[40];
	unsigned nr;
};

static struct values extremes(uint64_t mapped, uint32_t segment)
{
	struct values v = {
		.value = {0,
			  1,
			  2,
			  3,
			  7,
			  9,
			  10,
			  11,
			  22,
			  0x10,
			  0x32,
			  4095,
			  4096,
			  4097,
			  1 << 21,
			  64 << 20,
			  1 << 30,
			  INT32_MAX,
			  (uint64_t)1 << 31,
			  UINT32_MAX,
			  UINT64_C(1) << 32,
			  UINT64_C(1) << 47,
			  (UINT64_C(1) << 47) - 4096,
			  INT64_MAX,
			  INT64_MAX - 4095,
			  UINT64_C(1) << 63,
			  UINT64_MAX,
			  UINT64_MAX - 4095,
			  ARENA_WINDOW_BASE,
			  ARENA_WINDOW_BASE - 4096,
			  ARENA_WINDOW_BASE + (UINT64_C(64) << 30) - 4096,
			  mapped,
			  mapped + 4096,
			  mapped + 1,
			  mapped - 4096,
			  segment},
		.nr = 36,
	};

	return v;
}

static void set_field(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, uint64_t value)
{
	void *at = (char *)m + f->offset;

	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_INT32:
		*(uint32_t *)at = (uint32_t)value;
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_INT64:
		*(uint64_t *)at = value;
		break;
	case PROTOBUF_C_TYPE_STRING: {
		static const char *const names[] = {"",   "/",        "x",   "..",
						    "/s", "\xff\xfe", "a/b", "%s%n"};

		*(char **)at = (char *)names[value % ARRAY_SIZE(names)];
		break;
	}
	case PROTOBUF_C_TYPE_BYTES:
		((ProtobufCBinaryData *)at)->data = (uint8_t *)"0123456789";
		((ProtobufCBinaryData *)at)->len = value % 10;
		break;
	default:
		fail_msg("a field of type %d: teach it to this test", (int)f->type);
	}
}

/* A client with something to break: a mapping with pages, a segment, a direct block. */
static struct client *client_with_memory(uint64_t *mapped, uint32_t *segment)
{
	struct client *c = client_connect();

	client_attach(c);
	assert_int_equal(CALL(c, mmap, MMAP, msg_.length = 4 * MIB,
			      msg_.prot = PROT_READ | PROT_WRITE,
			      msg_.flags = MAP_PRIVATE | MAP_ANONYMOUS),
			 0);
	*mapped = c->reply->address->address;
	assert_int_equal(CALL(c, fault, FAULT, msg_.address = *mapped, msg_.access = PROT_WRITE),
			 0);
	assert_int_equal(CALL(c, shm_open, SHM_OPEN, msg_.name = (char *)"s",
			      msg_.oflag = O_CREAT | O_RDWR, msg_.mode = 0666),
			 0);
	*segment = c->reply->shm_open->segment;
	assert_int_equal(
		CALL(c, shm_truncate, SHM_TRUNCATE, msg_.segment = *segment, msg_.size = 2 * MIB),
		0);
	assert_int_equal(CALL(c, alloc_pages, ALLOC_PAGES, msg_.order = 1), 0);
	return c;
}

static void client_end_with_memory(struct client *c)
{
	struct credentials root = {.uid = 0};

	client_end(c);
	segment_unlink(machine.virt, &root, "s");
	assert_machine_whole();
}

static const ProtobufCFieldDescriptor *call_field(unsigned i)
{
	const ProtobufCFieldDescriptor *f = &arena__request__descriptor.fields[i];
	const struct method *m = method_find(f->id);

	return m && (m->where & METHOD_MAILBOX) ? f : NULL;
}

static unsigned nr_succeeded;

/* One request with `message`. False: the client was refused. */
static bool post_message(struct client *c, const ProtobufCFieldDescriptor *call,
			 ProtobufCMessage *message)
{
	Arena__Request rq = ARENA__REQUEST__INIT;
	int r;

	rq.call_case = (Arena__Request__CallCase)call->id;
	rq.null = (Arena__Null *)message;
	mailbox_post(c, 0, &rq);
	assert_true(channel_serve(c->peer));
	if (client_refused(c))
		return false;
	serve_all();
	/* Only a truncate waits, for others; here are none. */
	r = mailbox_answer(c, 0);
	assert_true(r >= 0);
	nr_succeeded += r == 0;
	client_acknowledge(c);
	return true;
}

/* A call that could work, for the fields that are not being varied. */
static void set_defaults(ProtobufCMessage *m, uint64_t mapped, uint32_t segment)
{
	for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		uint64_t value = 1;

		if (strcmp(f->name, "address") == 0)
			value = mapped;
		else if (strcmp(f->name, "new_address") == 0)
			value = mapped + MIB;
		else if (strstr(f->name, "length") || strcmp(f->name, "size") == 0)
			value = 8192;
		else if (strcmp(f->name, "end") == 0)
			value = 0; /* brk by delta */
		else if (strcmp(f->name, "segment") == 0)
			value = segment;
		else if (strcmp(f->name, "flags") == 0)
			value = MAP_SHARED;
		else if (strcmp(f->name, "advice") == 0)
			value = MADV_DONTNEED;
		else if (strcmp(f->name, "offset") == 0)
			value = 0;
		set_field(m, f, value);
	}
}

static void test_field_extremes(void **state)
{
	uint64_t mapped;
	uint32_t segment;

	(void)state;
	for (unsigned i = 0; i < arena__request__descriptor.n_fields; i++) {
		const ProtobufCFieldDescriptor *call = call_field(i);
		const ProtobufCMessageDescriptor *d = call ? call->descriptor : NULL;
		struct client *c;

		if (!call)
			continue;
		c = client_with_memory(&mapped, &segment);
		for (unsigned f = 0; f < d->n_fields; f++) {
			struct values v = extremes(mapped, segment);

			for (unsigned n = 0; n < v.nr; n++) {
				ProtobufCMessage *m = calloc(1, d->sizeof_message);

				assert_non_null(m);
				d->message_init(m);
				set_defaults(m, mapped, segment);
				set_field(m, &d->fields[f], v.value[n]);
				if (!post_message(c, call, m)) {
					client_end_with_memory(c);
					c = client_with_memory(&mapped, &segment);
				}
				free(m);
				assert_true(machine_is_valid(&machine));
			}
		}
		client_end_with_memory(c);
	}
}

/* All fields at once, in any order of calls. */
static void test_random_calls(void **state)
{
	struct prng rng = {.state = client_seed()};
	uint64_t mapped;
	uint32_t segment;
	struct client *c = client_with_memory(&mapped, &segment);

	(void)state;
	nr_succeeded = 0;
	for (unsigned round = 0; round < 5000; round++) {
		const ProtobufCFieldDescriptor *call =
			call_field((unsigned)prng_below(&rng, arena__request__descriptor.n_fields));
		struct values v = extremes(mapped, segment);
		const ProtobufCMessageDescriptor *d;
		ProtobufCMessage *m;

		if (!call)
			continue;
		d = call->descriptor;
		m = calloc(1, d->sizeof_message);
		assert_non_null(m);
		d->message_init(m);
		set_defaults(m, mapped, segment);
		for (unsigned f = 0; f < d->n_fields; f++)
			if (prng_below(&rng, 2))
				set_field(m, &d->fields[f], v.value[prng_below(&rng, v.nr)]);
		if (!post_message(c, call, m) || prng_below(&rng, 500) == 0) {
			client_end_with_memory(c);
			c = client_with_memory(&mapped, &segment);
		}
		free(m);
		if (round % 50 == 0)
			assert_true(machine_is_valid(&machine));
	}
	/* It is no test of the checks at the door alone. */
	assert_true(nr_succeeded > 500);
	client_end_with_memory(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_field_extremes),
		cmocka_unit_test(test_random_calls),
	};

	log_set_level(LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, setup, teardown);
}
