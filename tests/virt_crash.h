/* SPDX-License-Identifier: MIT */
/*
 * virt_crash.h - a worker that dies at a store to the truth, and the next one, in one process.
 *
 * Every call that this header wraps may die: crash_arm(n) lets the nth store from there on be the last.
 * The code under test is left by longjmp, its memory stays as it is and nobody looks at it again;
 * crash_recover() builds a new machine from what the store keeps, and the call is issued again as the
 * service would, with the journal for those that need it. So the caller of vm_munmap() does not notice,
 * and the model's tests run as they are. Use it in a forked child: abandoned memory and descriptors
 * end with it.
 */
#ifndef TESTS_VIRT_CRASH_H
#define TESTS_VIRT_CRASH_H

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/phys/journal.h"
#include "daemon/store/store.h"
#include "tests/sanitized.h"
#include "tests/virt_fake_machine.h"

/* Called when a new worker is there, before anything else happens; by the test. */
static void crash_reborn(void);

static struct {
	struct fake_machine *m;
	jmp_buf grave;
	unsigned deaths;
	uint64_t die_at; /* that store inside calls is the last; 0: none */
	uint64_t (*after_death)(
		void);     /* stores of the next worker until it dies, 0: none; or NULL */
	const char *fault; /* goes wrong for the next worker, as it recovers */
	struct virt_recover_stats stats;
	void (*survey)(uintptr_t site); /* nobody dies: told where each store is made */
	/* the call */
	bool journaled, delivered;
	unsigned call_deaths;
	uint32_t mm;
	int result;
} crash;

void truth_store_reached(void)
{
	if (crash.survey) {
		crash.survey((uintptr_t)__builtin_return_address(0));
		truth_stop_after = truth_stores + 1;
		return;
	}
	truth_stop_after = crash.die_at = 0;
	crash.deaths++;
	crash.call_deaths++;
	longjmp(crash.grave, 1);
}

static inline void crash_arm(uint64_t n)
{
	truth_stores = 0;
	crash.die_at = n;
}

static struct mm *crash_find(uint32_t id)
{
	struct mm *mm = NULL;

	while (id && (mm = mm_next(crash.m->virt, mm)))
		if (mm_id(mm) == id)
			break;
	return mm;
}

/* A new machine from what the store keeps; what a worker that dies now leaves is abandoned. */
static inline int crash_try_recover(void)
{
	struct fake_machine *m = crash.m;
	char why[128];
	int fd, r;

	store_fake_restart();
	fd = store_take("state");
	assert_true(fd >= 0);
	assert_int_equal(faultpoint_arm(crash.fault), 0);
	memset(&m->state, 0, sizeof(m->state));
	if (state_adopt(fd, &m->state, why, sizeof(why)))
		fail_msg("%s", why);
	phys_recover_topology(&m->state, &m->topology);
	r = phys_recover(&m->config, &m->state, &m->phys);
	if (!r)
		r = virt_recover(m->phys, &m->virt, &crash.stats);
	if (!r)
		store_drop_rest();
	return r;
}

/* The next worker. It may die too: then its caller is left as well. */
static inline void crash_recover(void)
{
	if (crash.after_death)
		crash_arm(crash.after_death());
	truth_stop_after = crash.die_at;
	assert_int_equal(crash_try_recover(), 0);
	virt_set_limits(crash.m->virt, fake_limit);
	assert_true(virt_is_valid(crash.m->virt));
	crash_reborn();
}

/* Run fn() in a child. True: it came to its end; *deaths: how often workers died, up to 100. */
static inline bool in_child(void (*fn)(void), unsigned *deaths)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		setenv("CMOCKA_TEST_ABORT", "1", 1);
		fn();
		fflush(stdout);
		_exit((int)MIN(crash.deaths, 100u));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	*deaths = WIFEXITED(status) ? (unsigned)WEXITSTATUS(status) : 0;
	return WIFEXITED(status) && *deaths <= 100;
}

typedef int (*crash_fn)(struct mm *mm, void *arg);

/* As the service: what a reply would carry is *arg. */
static void crash_deliver(const void *arg, size_t size)
{
	uint8_t reply[JOURNAL_REPLY_MAX];

	memcpy(reply, &crash.result, sizeof(crash.result));
	memcpy(reply + sizeof(crash.result), arg, size);
	journal_done(&crash.m->state, reply, sizeof(crash.result) + size);
	crash.delivered = true;
	journal_clear(&crash.m->state);
}

/* True: the reply was there already. */
static bool crash_begin(void *arg, size_t size)
{
	struct state *s = &crash.m->state;
	const struct call_journal *j = s->journal;

	if (!crash.journaled)
		return false;
	if (j->phase == JOURNAL_NONE) {
		if (!crash.delivered)
			journal_begin(s, 1, 0, 1, 1);
		return crash.delivered;
	}
	if (j->phase == JOURNAL_DONE) {
		memcpy(&crash.result, j->reply, sizeof(crash.result));
		memcpy(arg, j->reply + sizeof(crash.result), size);
		crash.delivered = true;
		journal_clear(s);
		return true;
	}
	journal_set_resuming(s);
	return false;
}

static int crash_run(crash_fn fn, struct mm *mm, void *arg, size_t size, bool journaled)
{
	crash.mm = mm ? mm_id(mm) : 0;
	crash.journaled = journaled;
	crash.delivered = false;
	crash.call_deaths = 0;
	truth_stop_after = crash.survey ? truth_stores + 1 : crash.die_at;
	/* Again and again, each time a worker dies. */
	if (setjmp(crash.grave))
		crash_recover();
	if (!crash_begin(arg, size)) {
		crash.result = fn(crash_find(crash.mm), arg);
		if (crash.journaled && crash.result == ARENA_E_WAIT_IO)
			journal_clear(&crash.m->state);
		else if (crash.journaled)
			crash_deliver(arg, size);
	}
	truth_stop_after = 0;
	return crash.result;
}

/* ---- the calls --------------------------------------------------------------------------------- */

struct crash_args {
	struct virt *v;
	const void *in;
	struct mm *mm;
	uint64_t a, b, c, d;
	unsigned e, f, g;
	void *out;
	struct segment_open open;
	struct fault_refusal refusal;
};

#define CRASH_CALL(journaled) crash_run(fn, mm, &k, sizeof(k), journaled)

/* mm: the parent, or none. */
static int crash_do_create(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct mm_params params = *(const struct mm_params *)k->in;
	struct mm *made = NULL;
	int r;

	params.parent = mm;
	r = mm_create(crash.m->virt, &params, &made);
	k->a = made ? mm_id(made) : 0;
	return r;
}

static inline int crash_mm_create(struct virt *v, const struct mm_params *p, struct mm **out)
{
	static uint32_t peer;
	struct mm_params params = *p;
	struct crash_args k = {.in = &params};
	int r;

	(void)v;
	params.peer = p->parent ? 0 : ++peer;
	r = crash_run(crash_do_create, p->parent, &k, sizeof(k), true);
	*out = r ? NULL : crash_find((uint32_t)k.a);
	return r;
}

/* As attach: who asks again for what has become his is told so. */
static int crash_do_adopt(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	const struct credentials *cred = k->in;

	if (!mm_is_forked(mm) && mm_pid(mm) == cred->pid)
		return 0;
	return mm_adopt(mm, cred, k->out, 0, 0);
}

static inline int crash_mm_adopt(struct mm *mm, const struct credentials *cred, const char *comm,
				 uint32_t peer, uint64_t start_time)
{
	struct crash_args k = {.in = cred, .out = (void *)(uintptr_t)comm};

	(void)peer, (void)start_time;
	return crash_run(crash_do_adopt, mm, &k, sizeof(k), false);
}

/* What a call waited for while the worker before was alive is nothing to the next one. */
static unsigned crash_waited_for;

static int crash_do_snapshot(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct virt *v = crash.m->virt;
	int r;

	if (crash_waited_for != crash.deaths)
		virt_io_retry(v, NULL);
	r = vm_snapshot(mm, k->a, k->b, &k->c);
	virt_io_retry(v, NULL);
	return r;
}

static inline int crash_vm_snapshot(struct mm *mm, uint64_t addr, uint64_t len, uint64_t *out)
{
	struct crash_args k = {.a = addr, .b = len, .c = *out};
	int r;

	crash_waited_for = crash.deaths;
	r = crash_run(crash_do_snapshot, mm, &k, sizeof(k), true);
	*out = k.c;
	return r;
}

static int crash_do_mmap_pfn(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_mmap_pfn(mm, k->in, k->b, &k->a);
}

static inline int crash_vm_mmap_pfn(struct mm *mm, const struct vm_mmap_args *args, uint64_t pfn,
				    uint64_t *out)
{
	struct crash_args k = {.in = args, .a = *out, .b = pfn};
	int r = crash_run(crash_do_mmap_pfn, mm, &k, sizeof(k), true);

	*out = k.a;
	return r;
}

static int crash_do_zero_file(struct mm *mm, void *arg)
{
	(void)arg;
	return vm_zero_file(mm);
}

static inline int crash_vm_zero_file(struct mm *mm)
{
	return crash_run(crash_do_zero_file, mm, NULL, 0, false);
}

static int crash_do_mlockall(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return k->e ? vm_mlockall(mm, k->e) : vm_munlockall(mm);
}

static inline int crash_vm_mlockall(struct mm *mm, uint32_t flags)
{
	struct crash_args k = {.e = flags};

	return crash_run(crash_do_mlockall, mm, &k, sizeof(k), false);
}

static inline int crash_vm_munlockall(struct mm *mm)
{
	struct crash_args k = {.e = 0};

	return crash_run(crash_do_mlockall, mm, &k, sizeof(k), false);
}

static int crash_do_set_mempolicy(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_set_mempolicy(mm, k->e, k->a);
}

static inline int crash_vm_set_mempolicy(struct mm *mm, uint32_t mode, uint64_t nodes)
{
	struct crash_args k = {.a = nodes, .e = mode};

	return crash_run(crash_do_set_mempolicy, mm, &k, sizeof(k), false);
}

static int crash_do_destroy(struct mm *mm, void *arg)
{
	(void)arg;
	mm_destroy(mm);
	return 0;
}

static inline struct mm *crash_mm_destroy(struct mm *mm)
{
	crash_run(crash_do_destroy, mm, NULL, 0, false);
	return NULL;
}

static int crash_do_mmap(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct vm_mmap_args args = *(const struct vm_mmap_args *)k->in;
	int fd = args.file ? dup(*args.file) : -1, r;

	/* Each time the request is looked at, its descriptor comes anew. */
	if (args.file)
		args.file = &fd;
	r = vm_mmap(mm, &args, &k->a);
	if (fd >= 0)
		close(fd);
	return r;
}

static inline int crash_vm_mmap(struct mm *mm, const struct vm_mmap_args *args, uint64_t *out)
{
	struct crash_args k = {.in = args, .a = *out};
	int r = crash_run(crash_do_mmap, mm, &k, sizeof(k), true);

	*out = k.a;
	return r;
}

static int crash_do_munmap(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_munmap(mm, k->a, k->b);
}

static inline int crash_vm_munmap(struct mm *mm, uint64_t addr, uint64_t len)
{
	struct crash_args k = {.a = addr, .b = len};

	return crash_run(crash_do_munmap, mm, &k, sizeof(k), false);
}

static int crash_do_mprotect(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_mprotect(mm, k->a, k->b, k->e);
}

static inline int crash_vm_mprotect(struct mm *mm, uint64_t addr, uint64_t len, uint32_t prot)
{
	struct crash_args k = {.a = addr, .b = len, .e = prot};

	return crash_run(crash_do_mprotect, mm, &k, sizeof(k), false);
}

static int crash_do_madvise(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	struct flush_wait *wait = k->out;

	/* Whoever waited for a worker that is dead waits for nobody. */
	if (wait)
		*wait = (struct flush_wait){.done = wait->done};
	return vm_madvise(mm, k->a, k->b, (int)k->e, wait);
}

static inline int crash_vm_madvise(struct mm *mm, uint64_t addr, uint64_t len, int advice,
				   struct flush_wait *wait)
{
	struct crash_args k = {.a = addr, .b = len, .e = (unsigned)advice, .out = wait};

	return crash_run(crash_do_madvise, mm, &k, sizeof(k), false);
}

static int crash_do_populate(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_populate(mm, k->a, k->b, k->e, k->f, &k->c);
}

static inline int crash_vm_populate(struct mm *mm, uint64_t addr, uint64_t len,
				    enum populate_mode mode, unsigned cpu, uint64_t *next)
{
	struct crash_args k = {.a = addr, .b = len, .c = *next, .e = mode, .f = cpu};
	int r = crash_run(crash_do_populate, mm, &k, sizeof(k), false);

	*next = k.c;
	return r;
}

static int crash_do_mremap(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_mremap(mm, k->in, &k->a);
}

static inline int crash_vm_mremap(struct mm *mm, const struct vm_mremap_args *args, uint64_t *out)
{
	struct crash_args k = {.in = args, .a = *out};
	int r = crash_run(crash_do_mremap, mm, &k, sizeof(k), true);

	*out = k.a;
	return r;
}

static int crash_do_brk(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_brk(mm, k->a, (int64_t)k->b, &k->c);
}

static inline int crash_vm_brk(struct mm *mm, uint64_t end, int64_t delta, uint64_t *out)
{
	struct crash_args k = {.a = end, .b = (uint64_t)delta, .c = *out};
	int r = crash_run(crash_do_brk, mm, &k, sizeof(k), true);

	*out = k.c;
	return r;
}

static int crash_do_mlock(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return k->e ? vm_mlock(mm, k->a, k->b, k->f) : vm_munlock(mm, k->a, k->b);
}

static inline int crash_vm_mlock(struct mm *mm, uint64_t addr, uint64_t len, bool onfault)
{
	struct crash_args k = {.a = addr, .b = len, .e = 1, .f = onfault};

	return crash_run(crash_do_mlock, mm, &k, sizeof(k), false);
}

static inline int crash_vm_munlock(struct mm *mm, uint64_t addr, uint64_t len)
{
	struct crash_args k = {.a = addr, .b = len};

	return crash_run(crash_do_mlock, mm, &k, sizeof(k), false);
}

static int crash_do_pin(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_pin(mm, k->a, k->b, k->e, k->f, &k->c);
}

static inline int crash_vm_pin(struct mm *mm, uint64_t addr, uint64_t len, bool write, unsigned cpu,
			       uint64_t *next)
{
	struct crash_args k = {.a = addr, .b = len, .c = *next, .e = write, .f = cpu};
	int r = crash_run(crash_do_pin, mm, &k, sizeof(k), true);

	*next = k.c;
	return r;
}

static int crash_do_unpin(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_unpin(mm, k->a, k->b);
}

static inline int crash_vm_unpin(struct mm *mm, uint64_t addr, uint64_t len)
{
	struct crash_args k = {.a = addr, .b = len};

	return crash_run(crash_do_unpin, mm, &k, sizeof(k), true);
}

static int crash_do_alloc(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_alloc_pages(mm, k->e, k->f, k->g, &k->a, &k->b);
}

static inline int crash_vm_alloc_pages(struct mm *mm, unsigned gfp, unsigned order, unsigned cpu,
				       uint64_t *addr, uint64_t *pfn)
{
	struct crash_args k = {.e = gfp, .f = order, .g = cpu};
	int r = crash_run(crash_do_alloc, mm, &k, sizeof(k), true);

	*addr = k.a;
	*pfn = k.b;
	return r;
}

static int crash_do_free(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_free_pages(mm, k->a, k->e);
}

static inline int crash_vm_free_pages(struct mm *mm, uint64_t addr, unsigned order)
{
	struct crash_args k = {.a = addr, .e = order};

	return crash_run(crash_do_free, mm, &k, sizeof(k), true);
}

static int crash_do_fault(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return vm_fault(mm, k->a, k->e, k->f, &k->refusal);
}

static inline int crash_vm_fault(struct mm *mm, uint64_t addr, uint32_t access, unsigned cpu,
				 struct fault_refusal *refusal)
{
	struct crash_args k = {.a = addr, .e = access, .f = cpu};
	int r = crash_run(crash_do_fault, mm, &k, sizeof(k), false);

	*refusal = k.refusal;
	return r;
}

static int crash_do_open(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return mm_open_segment(mm, k->in, &k->open);
}

static inline int crash_mm_open_segment(struct mm *mm, const struct credentials *cred,
					struct segment_open *open)
{
	struct crash_args k = {.in = cred, .open = *open};
	int r = crash_run(crash_do_open, mm, &k, sizeof(k), true);

	*open = k.open;
	/* A reply carries the descriptor itself, not its number in a worker that is dead. */
	if (!r && open->slot_new)
		open->slot_fd = domain_fd(crash_find(crash.mm)->slots[open->slot].domain);
	return r;
}

static int crash_do_close(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	return mm_close_segment(mm, k->e);
}

static inline int crash_mm_close_segment(struct mm *mm, uint32_t handle)
{
	struct crash_args k = {.e = handle};

	return crash_run(crash_do_close, mm, &k, sizeof(k), true);
}

static int crash_do_truncate(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct flush_wait *wait = k->out;

	/* Whoever waited for a worker that is dead waits for nobody. */
	if (wait)
		*wait = (struct flush_wait){.done = wait->done};
	return mm_truncate_segment(mm, k->e, (int64_t)k->a, wait);
}

static inline int crash_mm_truncate_segment(struct mm *mm, uint32_t handle, int64_t size,
					    struct flush_wait *wait)
{
	struct crash_args k = {.a = (uint64_t)size, .e = handle, .out = wait};

	return crash_run(crash_do_truncate, mm, &k, sizeof(k), false);
}

static int crash_do_unlink(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	(void)mm;
	return segment_unlink(crash.m->virt, k->in, k->out);
}

static inline int crash_segment_unlink(struct virt *v, const struct credentials *cred,
				       const char *name)
{
	struct crash_args k = {.in = cred, .out = (void *)(uintptr_t)name};

	(void)v;
	return crash_run(crash_do_unlink, NULL, &k, sizeof(k), true);
}

static int crash_do_collect(struct mm *mm, void *arg)
{
	(void)arg;
	return mm_flush_collect(mm);
}

static inline bool crash_mm_flush_collect(struct mm *mm)
{
	return crash_run(crash_do_collect, mm, NULL, 0, false);
}

static int crash_do_collect_all(struct mm *mm, void *arg)
{
	(void)mm, (void)arg;
	virt_flush_collect(crash.m->virt);
	return 0;
}

static inline void crash_virt_flush_collect(struct virt *v)
{
	(void)v;
	crash_run(crash_do_collect_all, NULL, NULL, 0, false);
}

static int crash_do_msync(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct io_wait *wait = k->out;

	*wait = (struct io_wait){0};
	return vm_msync(mm, k->a, k->b, k->e, wait);
}

static inline int crash_vm_msync(struct mm *mm, uint64_t addr, uint64_t len, uint32_t flags,
				 struct io_wait *wait)
{
	struct crash_args k = {.a = addr, .b = len, .e = flags, .out = wait};

	return crash_run(crash_do_msync, mm, &k, sizeof(k), false);
}

static int crash_do_files(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;

	(void)mm;
	if (k->a)
		virt_files_tick(crash.m->virt, k->a);
	else
		virt_files_collect(crash.m->virt);
	return 0;
}

static inline bool crash_virt_files_collect(struct virt *v)
{
	struct crash_args k = {0};

	(void)v;
	return crash_run(crash_do_files, NULL, &k, sizeof(k), false);
}

static inline void crash_virt_files_tick(struct virt *v, uint64_t now)
{
	struct crash_args k = {.a = now};

	(void)v;
	crash_run(crash_do_files, NULL, &k, sizeof(k), false);
}

enum crash_file_call { CRASH_FILE_SYNC, CRASH_FILE_HOLD, CRASH_FILE_RELEASE };

static int crash_do_file(struct mm *mm, void *arg)
{
	struct crash_args *k = arg;
	struct io_wait *wait = k->out;
	const struct vm_file_range *range = k->in;

	*wait = (struct io_wait){0};
	switch ((enum crash_file_call)k->e) {
	case CRASH_FILE_SYNC:
		return vm_file_sync(mm, range, wait);
	case CRASH_FILE_HOLD:
		return vm_file_hold(mm, range, (uint32_t)k->a, wait);
	default:
		return vm_file_release(mm, range, (uint32_t)k->a, wait);
	}
}

static inline int crash_file(struct mm *mm, enum crash_file_call what,
			     const struct vm_file_range *range, uint32_t thread,
			     struct io_wait *wait)
{
	struct crash_args k = {.a = thread, .e = what, .in = range, .out = wait};

	return crash_run(crash_do_file, mm, &k, sizeof(k), false);
}

#define vm_msync crash_vm_msync
#define virt_files_collect crash_virt_files_collect
#define virt_files_tick crash_virt_files_tick
#define mm_create crash_mm_create
#define mm_adopt crash_mm_adopt
#define mm_destroy crash_mm_destroy
#define vm_snapshot crash_vm_snapshot
#define vm_zero_file crash_vm_zero_file
#define vm_mmap_pfn crash_vm_mmap_pfn
#define vm_mlockall crash_vm_mlockall
#define vm_munlockall crash_vm_munlockall
#define vm_set_mempolicy crash_vm_set_mempolicy
#define vm_mmap crash_vm_mmap
#define vm_munmap crash_vm_munmap
#define vm_mprotect crash_vm_mprotect
#define vm_madvise crash_vm_madvise
#define vm_populate crash_vm_populate
#define vm_mremap crash_vm_mremap
#define vm_brk crash_vm_brk
#define vm_mlock crash_vm_mlock
#define vm_munlock crash_vm_munlock
#define vm_pin crash_vm_pin
#define vm_unpin crash_vm_unpin
#define vm_alloc_pages crash_vm_alloc_pages
#define vm_free_pages crash_vm_free_pages
#define vm_fault crash_vm_fault
#define mm_open_segment crash_mm_open_segment
#define mm_close_segment crash_mm_close_segment
#define mm_truncate_segment crash_mm_truncate_segment
#define segment_unlink crash_segment_unlink
#define mm_flush_collect crash_mm_flush_collect
#define virt_flush_collect crash_virt_flush_collect

#include "tests/virt_fake.h"

#endif
