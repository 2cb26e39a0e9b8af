/* SPDX-License-Identifier: MIT */
/*
 * fuzz_service.h - a small machine with a service and two fake clients, for the fuzz targets.
 *
 * An input is a sequence of records: op, client, length (16 bits), payload. What the ops mean is
 * the target's. The mutator works on records: it adds requests that decode, with values at the
 * edges of what the daemon knows, so that what is behind the decoder is reached from nothing;
 * besides, libFuzzer changes bytes as it likes.
 *
 * After each input the clients hang up, names are unlinked, and every frame must be back; now and
 * then all of the machine is validated.
 */
#ifndef FUZZ_SERVICE_H
#define FUZZ_SERVICE_H

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "arena/arena.h"
#include "base/prng.h"
#include "daemon/files/files.h"
#include "daemon/service/internal.h"

#define FUZZ_PEERS 2
#define FUZZ_WINDOW (UINT64_C(64) << 30)
#define FUZZ_RECORD_MAX 2048
#define FUZZ_VALIDATE_EVERY 64

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

static struct fuzz {
	struct machine machine;
	struct files *files;
	struct service *service;
	uint64_t boot_free, inputs;
	uint64_t tunables[NR_TUNABLES];
	pid_t child; /* whose pid the clients are said to have: it lives and maps nothing of ours */
	struct {
		struct peer *peer; /* NULL: closed */
		int fd;            /* the client's end */
	} client[FUZZ_PEERS];
} fz;

#define FUZZ_CHECK(x) ((x) ? (void)0 : fuzz_failed(#x))

static inline void fuzz_failed(const char *what)
{
	fprintf(stderr, "fuzz: not true: %s\n", what);
	abort();
}

/* ---- the machine --------------------------------------------------------------------------- */

static inline int fuzz_attr_read(void *ctx, const struct credentials *cred, const char *path,
				 char **out, size_t *len)
{
	return files_read(ctx, cred, path, out, len);
}

static inline int fuzz_attr_write(void *ctx, const struct credentials *cred, const char *path,
				  const char *value, size_t len)
{
	return files_write(ctx, cred, path, value, len);
}

static inline void fuzz_boot(void)
{
	static const struct service_attr_ops attr = {fuzz_attr_read, fuzz_attr_write};
	struct machine_config config;
	struct service_params params = {.machine = &fz.machine, .attr = &attr, .listen_fd = -1};
	char err[256] = "";

	fz.child = fork();
	if (!fz.child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	log_set_level(LOG_LEVEL_ERR);
	machine_config_init(&config);
	FUZZ_CHECK(!machine_config_set(&config, "arena-size", "64M", err, sizeof(err)));
	FUZZ_CHECK(!machine_config_set(&config, "nodes", "2", err, sizeof(err)));
	/* Frames that kzerod has in hand would make runs differ. */
	FUZZ_CHECK(!machine_config_set(&config, "zero-pool", "0", err, sizeof(err)));
	if (machine_boot(&fz.machine, &config, err, sizeof(err))) {
		fprintf(stderr, "fuzz: %s\n", err);
		exit(1);
	}
	machine_config_clear(&config);
	FUZZ_CHECK(!files_create(&fz.machine, &fz.files));
	params.attr_ctx = fz.files;
	FUZZ_CHECK(!service_create(&params, &fz.service));
	fz.boot_free = phys_free_pages(fz.machine.phys);
	memcpy(fz.tunables, phys_state(fz.machine.phys)->tunables, sizeof(fz.tunables));
}

/* Take what the daemon answered off the socket, and close what came with it. */
static inline void fuzz_drain(unsigned i)
{
	static char buf[ARENA_SOCKET_MAX_MESSAGE];
	int fds[ARENA_SOCKET_MAX_FDS];
	unsigned n = 0;

	while (fz.client[i].fd >= 0 && frame_recv(fz.client[i].fd, buf, sizeof(buf), fds,
						  ARENA_SOCKET_MAX_FDS, &n, FRAME_DONTWAIT) > 0)
		while (n)
			close(fds[--n]);
}

/* The client's peer if its connection lives. */
static inline struct peer *fuzz_peer(unsigned i)
{
	struct peer *p = fz.client[i].peer;

	if (p && peer_is_closed(p))
		p = fz.client[i].peer = NULL;
	return p;
}

static inline void fuzz_packet(unsigned i, const void *bytes, size_t len)
{
	struct peer *p = fuzz_peer(i);

	if (p)
		peer_handle_packet(p, bytes, len);
	fuzz_peer(i);
	fuzz_drain(i);
}

static inline void fuzz_request(unsigned i, Arena__Request *request)
{
	uint8_t buf[1024];
	size_t len;

	request->id = 1;
	FUZZ_CHECK(!frame_pack_request(request, buf, sizeof(buf), &len));
	fuzz_packet(i, buf, len);
}

static inline void fuzz_connect(unsigned i)
{
	static const gid_t groups[] = {1000};
	struct credentials cred = {.pid = fz.child,
				   .uid = 1000 + i,
				   .gid = 1000 + i,
				   .nr_groups = 1,
				   .groups = groups};
	int sv[2];

	FUZZ_CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv));
	fz.client[i].fd = sv[1];
	FUZZ_CHECK(!service_add_peer(fz.service, sv[0], &cred, &fz.client[i].peer));
}

static inline void fuzz_attach(unsigned i)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__Hello hello = ARENA__HELLO__INIT;
	Arena__Attach attach = ARENA__ATTACH__INIT;

	hello.abi_major = ARENA_ABI_MAJOR;
	hello.comm = (char *)"fuzz";
	request.call_case = ARENA__REQUEST__CALL_HELLO;
	request.hello = &hello;
	fuzz_request(i, &request);
	attach.window_base = ARENA_WINDOW_BASE;
	attach.window_size = FUZZ_WINDOW;
	request.call_case = ARENA__REQUEST__CALL_ATTACH;
	request.attach = &attach;
	fuzz_request(i, &request);
	FUZZ_CHECK(fuzz_peer(i) && peer_mm(fuzz_peer(i)));
}

/* Handle 1 of both is one segment, so that their calls meet. */
static inline void fuzz_open_segment(unsigned i)
{
	Arena__Request request = ARENA__REQUEST__INIT;
	Arena__ShmOpen shm_open = ARENA__SHM_OPEN__INIT;
	Arena__ShmTruncate shm_truncate = ARENA__SHM_TRUNCATE__INIT;

	shm_open.name = (char *)"ours";
	shm_open.oflag = O_RDWR | O_CREAT;
	shm_open.mode = 0666;
	request.call_case = ARENA__REQUEST__CALL_SHM_OPEN;
	request.shm_open = &shm_open;
	fuzz_request(i, &request);
	shm_truncate.segment = 1;
	shm_truncate.size = 3 << ARENA_LEAF_SHIFT;
	request.call_case = ARENA__REQUEST__CALL_SHM_TRUNCATE;
	request.shm_truncate = &shm_truncate;
	fuzz_request(i, &request);
}

static inline void fuzz_finish(void)
{
	const struct credentials root = {0};
	struct segment_info info;
	unsigned i;

	for (i = 0; i < FUZZ_PEERS; i++) {
		if (fz.client[i].fd >= 0)
			close(fz.client[i].fd);
		if (fuzz_peer(i))
			peer_close(fz.client[i].peer);
		fz.client[i].peer = NULL;
		fz.client[i].fd = -1;
	}
	service_round(fz.service);
	service_settle(fz.service);
	FUZZ_CHECK(service_nr_peers(fz.service) == 0);
	while (segment_next(fz.machine.virt, 0, &info))
		FUZZ_CHECK(!segment_unlink(fz.machine.virt, &root, info.name));
	FUZZ_CHECK(virt_limbo_pages(fz.machine.virt) == 0);
	FUZZ_CHECK(phys_free_pages(fz.machine.phys) == fz.boot_free);
	memcpy(phys_state(fz.machine.phys)->tunables, fz.tunables, sizeof(fz.tunables));
	if (++fz.inputs % FUZZ_VALIDATE_EVERY == 0)
		FUZZ_CHECK(machine_is_valid(&fz.machine));
}

/* ---- requests ------------------------------------------------------------------------------ */

static inline uint64_t pick(struct prng *r, const uint64_t *values, size_t n)
{
	return values[prng_below(r, n)];
}

/* A few leaves where calls meet: segments' common addresses, and the middle of the mappings. */
#define SPOT_LOW ARENA_WINDOW_BASE
#define SPOT_HIGH (ARENA_WINDOW_BASE + FUZZ_WINDOW / 4 * 3)

static inline uint64_t some_address(struct prng *r)
{
	static const uint64_t bases[] = {
		0,
		ARENA_WINDOW_BASE,
		ARENA_WINDOW_BASE + FUZZ_WINDOW / 8 * 3,
		ARENA_WINDOW_BASE + FUZZ_WINDOW / 2,
		ARENA_WINDOW_BASE + FUZZ_WINDOW - FUZZ_WINDOW / 64,
		ARENA_WINDOW_BASE + FUZZ_WINDOW,
		UINT64_C(1) << 47,
		UINT64_C(1) << 48,
		UINT64_MAX,
	};
	uint64_t base = prng_below(r, 2) ? SPOT_LOW : SPOT_HIGH;

	base += prng_below(r, 3) << ARENA_LEAF_SHIFT;
	if (prng_below(r, 8) == 0)
		base = pick(r, bases, ARRAY_SIZE(bases));
	if (prng_below(r, 2))
		base += prng_below(r, prng_below(r, 2) ? 4 : ARENA_LEAF_PAGES) << ARENA_PAGE_SHIFT;
	return prng_below(r, 32) ? base : base - 1 - prng_below(r, 8192);
}

static inline uint64_t some_length(struct prng *r)
{
	static const uint64_t lengths[] = {
		0, 1, FUZZ_WINDOW, UINT64_C(1) << 46, INT64_MAX, UINT64_MAX, UINT64_MAX - 4095};
	uint64_t kind = prng_below(r, 16);

	if (kind == 0)
		return pick(r, lengths, ARRAY_SIZE(lengths));
	if (kind < 8)
		return (1 + prng_below(r, 3)) << ARENA_LEAF_SHIFT;
	return prng_below(r, kind < 12 ? 5 : 1200) << ARENA_PAGE_SHIFT;
}

/* A handle that may well be open. */
static inline uint32_t some_segment(struct prng *r)
{
	static const uint64_t odd[] = {0, 4, 5, 65535, 65536, UINT32_MAX};

	return (uint32_t)(prng_below(r, 8) ? 1 + prng_below(r, 2) : pick(r, odd, ARRAY_SIZE(odd)));
}

static inline uint32_t some_prot(struct prng *r)
{
	return prng_below(r, 4) ? PROT_READ | PROT_WRITE : (uint32_t)prng_below(r, 9);
}

static inline uint32_t some_small(struct prng *r)
{
	static const uint64_t odd[] = {31, 32, 63, 64, 65535, INT32_MAX, UINT32_MAX};

	return (uint32_t)(prng_below(r, 8) ? prng_below(r, 12) : pick(r, odd, ARRAY_SIZE(odd)));
}

/* Half of all mappings go to a place of their own choice. */
static inline uint32_t some_flags(struct prng *r)
{
	static const uint64_t flags[] = {MAP_FIXED_NOREPLACE, MAP_NORESERVE, MAP_POPULATE,
					 MAP_SHARED,          MAP_HUGETLB,   MAP_GROWSDOWN,
					 MAP_ANONYMOUS,       UINT32_MAX};
	uint32_t f = (prng_below(r, 2) ? MAP_PRIVATE : MAP_SHARED) | MAP_ANONYMOUS |
		     (prng_below(r, 2) ? MAP_FIXED : 0);

	return prng_below(r, 8) ? f : f ^ (uint32_t)pick(r, flags, ARRAY_SIZE(flags));
}

static inline const char *some_name(struct prng *r)
{
	static const char *const names[] = {"a", "/b", "c", "", "/", "a/b", "..", "\xff\xfe"};

	return names[prng_below(r, prng_below(r, 4) ? 3 : ARRAY_SIZE(names))];
}

static inline const char *some_path(struct prng *r)
{
	static const char *const paths[] = {
		"proc/meminfo",
		"/proc/vmstat",
		"proc",
		"sys/kernel/mm/arena",
		"proc/zoneinfo",
		"proc/buddyinfo",
		"proc/self/maps",
		"proc/sys/vm/min_free_kbytes",
		"sys/kernel/mm/arena/fill_ahead_pages",
		"sys/devices/system/node/node0/meminfo",
		"proc//",
		"../etc",
		"",
		"sys/devices/system/memory/memory0/state",
	};

	return paths[prng_below(r, ARRAY_SIZE(paths))];
}

/* All messages that a request may hold, so that one can be filled in and packed. */
struct some_request {
	Arena__Request request;
	union {
		Arena__Hello hello;
		Arena__Attach attach;
		Arena__Null null;
		Arena__Bye bye;
		Arena__Fault fault;
		Arena__Mmap mmap;
		Arena__Munmap munmap;
		Arena__Mprotect mprotect;
		Arena__Madvise madvise;
		Arena__Populate populate;
		Arena__ShmOpen shm_open;
		Arena__ShmTruncate shm_truncate;
		Arena__ShmClose shm_close;
		Arena__ShmUnlink shm_unlink;
		Arena__ShmStat shm_stat;
		Arena__AllocPages alloc_pages;
		Arena__FreePages free_pages;
		Arena__AttrRead attr_read;
		Arena__AttrWrite attr_write;
	} m;
};

#define SOME(CASE, member, ...)                                    \
	case ARENA__REQUEST__CALL_##CASE:                          \
		q->request.member = &q->m.member;                  \
		arena__##member##__init(&q->m.member);             \
		{                                                  \
			__typeof__(q->m.member) *m = &q->m.member; \
			(void)m;                                   \
			__VA_ARGS__;                               \
		}                                                  \
		break

static inline void some_memory_call(struct prng *r, struct some_request *q)
{
	switch (q->request.call_case) {
		SOME(FAULT, fault, m->address = some_address(r),
		     m->access = prng_below(r, 2) ? PROT_WRITE : 1u << prng_below(r, 4),
		     m->cpu = some_small(r));
		SOME(MMAP, mmap, m->address = prng_below(r, 2) ? some_address(r) : 0,
		     m->length = some_length(r), m->prot = some_prot(r), m->flags = some_flags(r),
		     m->segment = prng_below(r, 2) ? some_segment(r) : 0,
		     m->offset = prng_below(r, 4) ? 0 : (int64_t)some_length(r));
		SOME(MUNMAP, munmap, m->address = some_address(r), m->length = some_length(r));
		SOME(MPROTECT, mprotect, m->address = some_address(r), m->length = some_length(r),
		     m->prot = some_prot(r));
		SOME(MADVISE, madvise, m->address = some_address(r), m->length = some_length(r),
		     m->advice = prng_below(r, 2) ? MADV_DONTNEED : (int32_t)prng_below(r, 26));
		SOME(POPULATE, populate, m->address = some_address(r), m->length = some_length(r),
		     m->write = (uint32_t)prng_below(r, 2), m->cpu = some_small(r));
		SOME(ALLOC_PAGES, alloc_pages,
		     m->gfp = prng_below(r, 4) ? 1u << prng_below(r, 32) : some_small(r),
		     m->order = some_small(r), m->cpu = some_small(r));
		SOME(FREE_PAGES, free_pages,
		     m->address = ARENA_WINDOW_BASE + FUZZ_WINDOW / 8 * 3 +
				  (prng_below(r, 32) << (ARENA_PAGE_SHIFT + prng_below(r, 10))),
		     m->order = some_small(r));
	default:
		break;
	}
}

static inline void some_other_call(struct prng *r, struct some_request *q)
{
	static uint8_t value[4] = "12\n";
	static const uint64_t oflags[] = {
		O_RDWR | O_CREAT, O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_TRUNC,
		O_RDONLY,         O_RDWR,           O_RDWR | O_CREAT | O_EXCL,
		O_WRONLY,         UINT32_MAX};

	switch (q->request.call_case) {
		SOME(HELLO, hello, m->abi_major = ARENA_ABI_MAJOR, m->comm = (char *)some_name(r));
		SOME(ATTACH, attach, m->window_base = some_address(r) & ~(ARENA_WINDOW_ALIGN - 1),
		     m->window_size = some_length(r));
		SOME(NULL, null, (void)0);
		SOME(BYE, bye, (void)0);
		SOME(SHM_OPEN, shm_open, m->name = (char *)some_name(r),
		     m->oflag = (uint32_t)pick(r, oflags, ARRAY_SIZE(oflags)),
		     m->mode = prng_below(r, 2) ? 0600 : 0666);
		SOME(SHM_TRUNCATE, shm_truncate, m->segment = some_segment(r),
		     m->size = (int64_t)some_length(r));
		SOME(SHM_CLOSE, shm_close, m->segment = some_segment(r));
		SOME(SHM_UNLINK, shm_unlink, m->name = (char *)some_name(r));
		SOME(SHM_STAT, shm_stat, m->segment = some_segment(r));
		SOME(ATTR_READ, attr_read, m->path = (char *)some_path(r),
		     m->offset = prng_below(r, 2) ? 0 : some_length(r),
		     m->size = some_small(r) * 100);
		SOME(ATTR_WRITE, attr_write, m->path = (char *)some_path(r), m->value.data = value,
		     m->value.len = 1 + prng_below(r, 3));
	default:
		break;
	}
}

/* Most requests map memory or touch it. Bye and hello rarely: they end what others began. */
static inline size_t some_request(struct prng *r, void *buf, size_t size)
{
	struct some_request q;
	size_t len;
	uint64_t kind = prng_below(r, 8);
	unsigned c = (unsigned)(kind < 3   ? ARENA__REQUEST__CALL_FAULT + prng_below(r, 2)
				: kind < 5 ? ARENA__REQUEST__CALL_FAULT + prng_below(r, 5)
					   : ARENA__REQUEST__CALL_HELLO + prng_below(r, 19));

	if (c <= ARENA__REQUEST__CALL_BYE && prng_below(r, 4))
		c = prng_below(r, 2) ? ARENA__REQUEST__CALL_SHM_OPEN
				     : ARENA__REQUEST__CALL_SHM_TRUNCATE;
	arena__request__init(&q.request);
	q.request.id = prng_next(r);
	q.request.call_case = (Arena__Request__CallCase)c;
	some_memory_call(r, &q);
	some_other_call(r, &q);
	return frame_pack_request(&q.request, buf, size, &len) ? 0 : len;
}

/* ---- records ------------------------------------------------------------------------------- */

struct record {
	uint8_t op, client;
	uint16_t len;
	const uint8_t *payload;
};
#define RECORD_HEADER 4

static inline bool record_next(const uint8_t **at, const uint8_t *end, struct record *out)
{
	if (end - *at < RECORD_HEADER)
		return false;
	out->op = (*at)[0];
	out->client = (*at)[1] % FUZZ_PEERS;
	out->len = (uint16_t)((*at)[2] | (*at)[3] << 8);
	*at += RECORD_HEADER;
	out->len = (uint16_t)MIN((size_t)out->len, (size_t)(end - *at));
	out->payload = *at;
	*at += out->len;
	return true;
}

/* The target's: fill in a record's op and payload; returns the payload's length. */
static size_t some_record(struct prng *r, uint8_t *op, uint8_t *payload, size_t max);

static inline size_t record_make(struct prng *r, uint8_t *to)
{
	size_t len = some_record(r, &to[0], to + RECORD_HEADER, FUZZ_RECORD_MAX - RECORD_HEADER);

	to[1] = (uint8_t)prng_below(r, FUZZ_PEERS);
	to[2] = (uint8_t)len;
	to[3] = (uint8_t)(len >> 8);
	return RECORD_HEADER + len;
}

/* Replace [from, from + old) of the input by new bytes, if there is room. */
static inline size_t replace_bytes(uint8_t *data, size_t size, size_t max, size_t from, size_t old,
				   const uint8_t *bytes, size_t n)
{
	if (size - old + n > max)
		return size;
	memmove(data + from + n, data + from + old, size - from - old);
	memcpy(data + from, bytes, n);
	return size - old + n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	struct prng r = {seed};
	const uint8_t *at = data;
	uint8_t fresh[FUZZ_RECORD_MAX];
	size_t start[256], end[256], n = 0, i, rounds = 1 + prng_below(&r, 6);
	struct record rec;

	if (size <= 1)
		rounds = 20 + prng_below(&r, 60);
	else if (prng_below(&r, 5) == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	while (rounds--) {
		for (n = 0, at = data; n < 256; n++) {
			start[n] = (size_t)(at - data);
			if (!record_next(&at, data + size, &rec))
				break;
			end[n] = (size_t)(at - data);
		}
		i = n ? prng_below(&r, n) : 0;
		switch (n ? prng_below(&r, 8) : 0) {
		case 6: /* one less */
			size = replace_bytes(data, size, max_size, start[i], end[i] - start[i],
					     fresh, 0);
			break;
		case 7: /* another instead */
			size = replace_bytes(data, size, max_size, start[i], end[i] - start[i],
					     fresh, record_make(&r, fresh));
			break;
		default: /* one more, most often at the end */
			size = replace_bytes(data, size, max_size,
					     n && prng_below(&r, 2) ? end[i] : size, 0, fresh,
					     record_make(&r, fresh));
		}
	}
	return size;
}

#endif
