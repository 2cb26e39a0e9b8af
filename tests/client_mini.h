/* SPDX-License-Identifier: MIT */
/*
 * client_mini.h - a daemon of 450 lines that runs in a thread of the test: one client at a time, one
 * page table, frames handed out in order. It keeps to docs/protocol.md where honest daemons do, and
 * hangs up, refuses or takes pages away when a test says so. Included by one test program.
 */
#ifndef TESTS_CLIENT_MINI_H
#define TESTS_CLIENT_MINI_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/faultpoint.h"
#include "base/os.h"
#include "base/util.h"
#include "proto/frame.h"

#define FRAMES 65536u
#define TABLES 4096u
#define AREAS 64

struct area {
	uint64_t start, end;
	uint32_t prot;
};

/* Under `mutex`, but for what the thread alone uses. */
static struct mini {
	pthread_mutex_t mutex;
	pthread_t thread;
	char path[100];
	int listener, conn, doorbell, stop, arena, other, mm_fd, channel_fd;
	struct arena_mm_header *mm;
	uint64_t *tables;
	struct arena_channel_header *channel;
	uint64_t base, next_address, next_frame, posted;
	struct area areas[AREAS];
	int hello_error;
	bool leaves;            /* hangs up instead of answering a mailbox, once */
	unsigned leaves_socket; /* the same of so many packets */
	bool attached;          /* on this connection: its mailboxes are looked at */
	bool sleeps;            /* answers nothing */
	bool forgets;           /* knows no address space of an earlier connection */
	bool twice;             /* sends each answer by the socket twice */
	int last_word;          /* said before the next hang-up; 0: nothing */
	unsigned byes, faults, connections, attaches, slots;
} d;

static uint64_t *entry_of(uint64_t addr)
{
	uint64_t *table = d.tables;

	for (unsigned level = 3; level > 0; level--) {
		uint64_t *e = &table[arena_table_index(addr, level)];

		if (!*e) {
			uint64_t nr = d.mm->nr_tables++;

			store_release(e, (nr << ARENA_PTE_PFN_SHIFT) | ARENA_PTE_PRESENT);
		}
		table = d.tables + arena_pte_pfn(*e) * ARENA_PTRS_PER_TABLE;
	}
	return &table[arena_table_index(addr, 0)];
}

static struct area *area_of(uint64_t addr)
{
	for (unsigned i = 0; i < AREAS; i++)
		if (addr >= d.areas[i].start && addr < d.areas[i].end)
			return &d.areas[i];
	return NULL;
}

static void install(uint64_t addr, uint32_t prot)
{
	uint64_t *e = entry_of(addr), pte = *e & ARENA_PTE_PFN_MASK;

	if (!*e)
		pte = d.next_frame++ << ARENA_PTE_PFN_SHIFT;
	pte |= ARENA_PTE_PRESENT | ARENA_PTE_HOLE | (prot & PROT_READ ? ARENA_PTE_READ : 0) |
	       (prot & PROT_WRITE ? ARENA_PTE_WRITE : 0);
	store_release(e, pte);
}

static uint64_t post(uint64_t start, uint64_t end, uint32_t op)
{
	struct arena_flush_entry *ring = (void *)((char *)d.channel + ARENA_CHANNEL_FLUSH);
	struct arena_flush_entry *e = &ring[++d.posted % ARENA_FLUSH_ENTRIES];

	e->start = start;
	e->end = end;
	e->op = op;
	store_release(&e->seq, d.posted);
	store_release(&d.channel->flush_head, d.posted);
	store_release(&d.channel->flush_word, (uint32_t)d.posted);
	return d.posted;
}

static void on_fault(const Arena__Fault *m, Arena__FaultReply *reply)
{
	struct area *a = area_of(m->address);

	__atomic_fetch_add(&d.faults, 1, __ATOMIC_RELAXED);
	if (!a || !(a->prot & m->access)) {
		reply->signo = SIGSEGV;
		reply->code = a ? SEGV_ACCERR : SEGV_MAPERR;
		return;
	}
	for (uint64_t p = m->address & ARENA_PAGE_MASK, n = 0; p < a->end && n < 8; p += 4096, n++)
		install(p, a->prot);
}

static uint64_t on_mmap(const Arena__Mmap *m)
{
	uint64_t len = ALIGN_UP(m->length, ARENA_PAGE_SIZE);

	for (unsigned i = 0; i < AREAS; i++) {
		if (d.areas[i].end)
			continue;
		d.areas[i] = (struct area){d.next_address, d.next_address + len, m->prot};
		d.next_address += len + ARENA_LEAF_SIZE;
		return d.areas[i].start;
	}
	return 0;
}

/* One whole area at a time. */
static int on_change(uint64_t addr, bool unmap, uint32_t prot, uint64_t *flush)
{
	struct area *a = area_of(addr);

	if (!a)
		return ENOMEM;
	for (uint64_t p = a->start; p < a->end; p += ARENA_PAGE_SIZE) {
		if (unmap)
			store_release(entry_of(p), UINT64_C(0));
		else if (*entry_of(p))
			install((store_release(entry_of(p), *entry_of(p) & ~ARENA_PTE_PERM), p),
				prot);
	}
	*flush = post(a->start, a->end, unmap ? ARENA_FLUSH_UNMAP : ARENA_FLUSH_WRPROTECT);
	a->prot = prot;
	if (unmap)
		*a = (struct area){0};
	return 0;
}

struct results {
	Arena__FaultReply fault;
	Arena__AddressReply address;
	Arena__PopulateReply populate;
	Arena__AllocPagesReply pages;
	Arena__HelloReply hello;
	Arena__AttachReply attach;
	Arena__AttrReadReply attr;
	Arena__ShmOpenReply shm;
};

static const char attr_text[200000] = {[0 ... 199999] = 'a'};

static void answer_session(const Arena__Request *q, Arena__Reply *reply, struct results *r)
{
	switch (q->call_case) {
	case ARENA__REQUEST__CALL_HELLO:
		r->hello = (Arena__HelloReply)ARENA__HELLO_REPLY__INIT;
		r->hello.abi_major = ARENA_ABI_MAJOR;
		reply->result_case = ARENA__REPLY__RESULT_HELLO;
		reply->hello = &r->hello;
		reply->error = load_relaxed(&d.hello_error);
		break;
	case ARENA__REQUEST__CALL_ATTR_READ:
		r->attr = (Arena__AttrReadReply)ARENA__ATTR_READ_REPLY__INIT;
		if (strcmp(q->attr_read->path, "proc/text") != 0) {
			reply->error = ENOENT;
			break;
		}
		r->attr.data.len = MIN(q->attr_read->size, 50000);
		r->attr.data.len = MIN(r->attr.data.len, sizeof(attr_text) - q->attr_read->offset);
		r->attr.data.data = (uint8_t *)attr_text;
		r->attr.eof = q->attr_read->offset + r->attr.data.len == sizeof(attr_text);
		reply->result_case = ARENA__REPLY__RESULT_ATTR_READ;
		reply->attr_read = &r->attr;
		break;
	default:
		reply->error = EINVAL;
	}
}

static void answer(const Arena__Request *q, Arena__Reply *reply, struct results *r)
{
	struct area *a;

	*reply = (Arena__Reply)ARENA__REPLY__INIT;
	reply->id = q->id;
	switch (q->call_case) {
	case ARENA__REQUEST__CALL_FAULT:
		r->fault = (Arena__FaultReply)ARENA__FAULT_REPLY__INIT;
		on_fault(q->fault, &r->fault);
		reply->result_case = ARENA__REPLY__RESULT_FAULT;
		reply->fault = &r->fault;
		break;
	case ARENA__REQUEST__CALL_MMAP:
		r->address = (Arena__AddressReply)ARENA__ADDRESS_REPLY__INIT;
		r->address.address = on_mmap(q->mmap);
		reply->result_case = ARENA__REPLY__RESULT_ADDRESS;
		reply->address = &r->address;
		break;
	case ARENA__REQUEST__CALL_MUNMAP:
		reply->error = on_change(q->munmap->address, true, 0, &reply->flush_seq);
		break;
	case ARENA__REQUEST__CALL_MPROTECT:
		reply->error = on_change(q->mprotect->address, false, q->mprotect->prot,
					 &reply->flush_seq);
		break;
	case ARENA__REQUEST__CALL_POPULATE:
		r->populate = (Arena__PopulateReply)ARENA__POPULATE_REPLY__INIT;
		r->populate.next =
			q->populate->address + 4096 * MIN(q->populate->length / 4096, 50);
		a = area_of(q->populate->address);
		if (!a) {
			reply->error = ENOMEM;
			break;
		}
		for (uint64_t p = q->populate->address; p < r->populate.next; p += 4096)
			install(p, a->prot);
		reply->result_case = ARENA__REPLY__RESULT_POPULATE;
		reply->populate = &r->populate;
		break;
	case ARENA__REQUEST__CALL_NULL:
		break;
	case ARENA__REQUEST__CALL_SLOT:
		reply->error = q->slot->number == 1 ? 0 : ENOENT;
		break;
	case ARENA__REQUEST__CALL_SHM_OPEN:
		r->shm = (Arena__ShmOpenReply)ARENA__SHM_OPEN_REPLY__INIT;
		r->shm.segment = r->shm.slot = 1;
		reply->result_case = ARENA__REPLY__RESULT_SHM_OPEN;
		reply->shm_open = &r->shm;
		break;
	case ARENA__REQUEST__CALL_BYE:
		__atomic_fetch_add(&d.byes, 1, __ATOMIC_RELAXED);
		break;
	default:
		answer_session(q, reply, r);
	}
}

static void drop_space(void)
{
	if (!d.channel)
		return;
	os_unmap(d.mm, ARENA_MM_TABLES_OFFSET + TABLES * 4096);
	os_unmap(d.channel, ARENA_CHANNEL_SIZE);
	d.channel = NULL;
	close(d.mm_fd);
	close(d.channel_fd);
	close(d.doorbell);
	d.doorbell = -1;
	memset(d.areas, 0, sizeof(d.areas));
}

static void make_space(const Arena__Attach *m)
{
	void *p;

	drop_space();
	d.mm_fd = os_memfd("mm", ARENA_MM_FILE_SIZE);
	d.channel_fd = os_memfd("channel", ARENA_CHANNEL_SIZE);
	if (os_map(d.mm_fd, 0, ARENA_MM_TABLES_OFFSET + TABLES * 4096, OS_MAP_READ | OS_MAP_WRITE,
		   &p) < 0)
		abort();
	d.mm = p;
	d.tables = (uint64_t *)((char *)p + ARENA_MM_TABLES_OFFSET);
	if (os_map(d.channel_fd, 0, ARENA_CHANNEL_SIZE, OS_MAP_READ | OS_MAP_WRITE, &p) < 0)
		abort();
	d.channel = p;
	d.mm->magic = ARENA_MM_MAGIC;
	d.mm->abi_major = d.channel->abi_major = ARENA_ABI_MAJOR;
	d.mm->window_base = d.base = m->window_base;
	d.mm->window_size = m->window_size;
	d.mm->nr_tables = 1;
	d.channel->magic = ARENA_CHANNEL_MAGIC;
	d.next_address = d.base + (UINT64_C(1) << 30) - 8 * ARENA_LEAF_SIZE;
	d.posted = 0;
}

static uint8_t token[16] = "mini's secret";
static void scan_mailboxes(void);

/* 0 and what goes with the reply, or errno. */
static int attach(const Arena__Attach *m, Arena__AttachReply *reply, int fds[4])
{
	bool known = d.channel && !d.forgets && m->token.len == sizeof(token) &&
		     memcmp(m->token.data, token, sizeof(token)) == 0;

	d.attaches++;
	if (m->mm_id && !known)
		return ESTALE;
	d.attached = true;
	if (!m->mm_id)
		make_space(m);
	if (d.doorbell >= 0)
		close(d.doorbell);
	d.doorbell = os_eventfd();
	reply->mm_id = 1;
	reply->token.data = token;
	reply->token.len = sizeof(token);
	fds[0] = os_reopen_readonly(d.mm_fd);
	fds[1] = d.channel_fd;
	fds[2] = d.doorbell;
	fds[3] = d.arena;
	return 0;
}

/* The address space stays, for the client may come back. */
static void hang_up(void)
{
	if (d.conn >= 0)
		close(d.conn);
	d.conn = -1;
	d.attached = false;
}

static void send_reply(Arena__Reply *reply, const int *fds, unsigned nr_fds)
{
	static char packet[ARENA_SOCKET_MAX_MESSAGE];
	size_t len;

	if (frame_pack_reply(reply, packet, sizeof(packet), &len) < 0)
		abort();
	frame_send(d.conn, packet, len, fds, nr_fds);
	if (d.twice)
		frame_send(d.conn, packet, len, fds, nr_fds);
}

static void serve_attach(const Arena__Request *q)
{
	Arena__Reply reply = ARENA__REPLY__INIT;
	Arena__AttachReply result = ARENA__ATTACH_REPLY__INIT;
	int fds[4] = {-1};

	reply.id = q->id;
	reply.error = attach(q->attach, &result, fds);
	if (!reply.error) {
		reply.result_case = ARENA__REPLY__RESULT_ATTACH;
		reply.attach = &result;
	}
	send_reply(&reply, fds, reply.error ? 0 : 4);
	if (fds[0] >= 0)
		close(fds[0]);
	if (q->attach->mm_id && !reply.error)
		scan_mailboxes();
}

static void serve_socket(void)
{
	static char packet[ARENA_SOCKET_MAX_MESSAGE], memory[FRAME_ARENA_SOCKET];
	struct frame_arena fa = {memory, sizeof(memory), 0};
	ssize_t n;
	Arena__Request *q;
	Arena__Reply reply;
	struct results results;

	if (d.sleeps)
		return;
	n = frame_recv(d.conn, packet, sizeof(packet), NULL, 0, NULL, 0);
	if (n <= 0 || frame_unpack_request(packet, (size_t)n, &fa, &q) < 0) {
		hang_up();
		return;
	}
	if (d.leaves_socket) {
		d.leaves_socket--;
		hang_up();
		return;
	}
	if (d.last_word) {
		reply = (Arena__Reply)ARENA__REPLY__INIT;
		reply.error = d.last_word;
		send_reply(&reply, NULL, 0);
		hang_up();
		return;
	}
	if (q->call_case == ARENA__REQUEST__CALL_ATTACH) {
		serve_attach(q);
		return;
	}
	answer(q, &reply, &results);
	if (q->call_case == ARENA__REQUEST__CALL_SLOT) {
		d.slots += q->slot->number != ARENA_SLOT_ZERO;
		send_reply(&reply, &d.other, reply.error ? 0 : 1);
	} else if (q->call_case == ARENA__REQUEST__CALL_SHM_OPEN) {
		send_reply(&reply, &d.other, 1);
	} else {
		send_reply(&reply, NULL, 0);
	}
	if (q->call_case == ARENA__REQUEST__CALL_BYE)
		drop_space();
}

static void serve_mailbox(struct arena_mailbox *box)
{
	char memory[FRAME_ARENA_MAILBOX];
	struct frame_arena fa = {memory, sizeof(memory), 0};
	struct results results;
	Arena__Request *q;
	Arena__Reply reply;
	size_t len;

	if (frame_unpack_request(box->payload, box->len, &fa, &q) < 0)
		abort();
	answer(q, &reply, &results);
	if (frame_pack_reply(&reply, box->payload, sizeof(box->payload), &len) < 0)
		abort();
	box->len = (uint32_t)len;
	if (__atomic_exchange_n(&box->state, ARENA_MAILBOX_REPLY, __ATOMIC_SEQ_CST) ==
	    ARENA_MAILBOX_REQUEST_WAIT)
		os_futex_wake(&box->state, 1);
}

static void scan_mailboxes(void)
{
	struct arena_mailbox *boxes = (void *)((char *)d.channel + ARENA_CHANNEL_MAILBOXES);

	__atomic_exchange_n(&d.channel->pending, 0, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < ARENA_NR_MAILBOXES; i++)
		if (load_acquire(&boxes[i].state) == ARENA_MAILBOX_REQUEST ||
		    load_acquire(&boxes[i].state) == ARENA_MAILBOX_REQUEST_WAIT)
			serve_mailbox(&boxes[i]);
}

static void serve_mailboxes(void)
{
	struct arena_mailbox *boxes = (void *)((char *)d.channel + ARENA_CHANNEL_MAILBOXES);
	uint64_t pending;

	os_eventfd_drain(d.doorbell);
	pending = __atomic_exchange_n(&d.channel->pending, 0, __ATOMIC_SEQ_CST);
	if (pending && d.leaves) {
		d.leaves = false;
		hang_up();
		return;
	}
	for (; pending; pending &= pending - 1)
		serve_mailbox(&boxes[__builtin_ctzll(pending)]);
}

static void *mini_main(void *arg)
{
	for (;;) {
		struct pollfd p[4] = {{d.stop, POLLIN, 0}, {d.listener, POLLIN, 0}};

		/* Nobody listens to a client that is not attached. */
		pthread_mutex_lock(&d.mutex);
		p[2] = (struct pollfd){d.sleeps ? -1 : d.conn, POLLIN, 0};
		p[3] = (struct pollfd){d.sleeps || !d.attached ? -1 : d.doorbell, POLLIN, 0};
		pthread_mutex_unlock(&d.mutex);
		poll(p, 4, -1);
		pthread_mutex_lock(&d.mutex);
		if (p[0].revents) {
			uint64_t word = 0;

			if (read(d.stop, &word, 8) == 8 && word >= 1000) {
				hang_up();
				drop_space();
				pthread_mutex_unlock(&d.mutex);
				return arg;
			}
		}
		if (p[3].revents && p[3].fd == d.doorbell && d.channel && d.attached && !d.sleeps)
			serve_mailboxes();
		if (p[2].revents && d.conn == p[2].fd)
			serve_socket();
		if (p[1].revents) {
			hang_up();
			d.connections++;
			d.conn = accept4(d.listener, NULL, NULL, SOCK_CLOEXEC);
		}
		pthread_mutex_unlock(&d.mutex);
	}
}

/* The channel of the client that is attached, NULL if none is. */
static struct arena_channel_header *channel(void)
{
	struct arena_channel_header *c;

	pthread_mutex_lock(&d.mutex);
	c = d.channel;
	pthread_mutex_unlock(&d.mutex);
	return c;
}

static void tell_mini(uint64_t word)
{
	assert_int_equal(write(d.stop, &word, 8), 8);
}

static int start(void **state)
{
	static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	char dir[] = "/tmp/arena-test-XXXXXX";

	(void)state;
	memset(&d, 0, sizeof(d));
	d.mutex = fresh;
	assert_non_null(mkdtemp(dir));
	snprintf(d.path, sizeof(d.path), "%s/socket", dir);
	strcpy(sa.sun_path, d.path);
	d.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(d.listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(d.listener, 5), 0);
	d.conn = d.doorbell = -1;
	d.stop = os_eventfd();
	d.arena = os_memfd("arena", FRAMES * UINT64_C(4096));
	d.other = os_memfd("other", FRAMES * UINT64_C(4096));
	return pthread_create(&d.thread, NULL, mini_main, NULL);
}

static int finish(void **state)
{
	(void)state;
	faultpoint_arm(NULL);
	tell_mini(1000);
	pthread_join(d.thread, NULL);
	close(d.listener);
	close(d.stop);
	close(d.arena);
	close(d.other);
	unlink(d.path);
	*strrchr(d.path, '/') = '\0';
	rmdir(d.path);
	return 0;
}

#endif
