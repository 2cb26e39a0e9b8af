/* SPDX-License-Identifier: MIT */
/* util.h - small macros that every room uses. */
#ifndef BASE_UTIL_H
#define BASE_UTIL_H

#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALIGN_DOWN(x, a) ((x) & ~((__typeof__(x))(a)-1)) /* a: a power of two */
#define ALIGN_UP(x, a) ALIGN_DOWN((x) + (__typeof__(x))(a)-1, a)
#define IS_ALIGNED(x, a) (((x) & ((__typeof__(x))(a)-1)) == 0)
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define __unused_ __attribute__((unused))
#define __printf_(a, b) __attribute__((format(printf, a, b)))

/* Shared words: one name per ordering that the tree uses. */
#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define fence_full() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
/* The sanitizer does not see fences; what they order here is with other processes. */
#pragma GCC diagnostic ignored "-Wtsan"
#endif

/*
 * Debug builds (DEBUG=1, and every SAN= build) check invariants with ASSERT and run the
 * _is_valid() functions after mutations with ASSERT_VALID.
 */
void assert_failed(const char *what, const char *file, int line) __attribute__((noreturn));
#ifdef ARENA_DEBUG
#define ASSERT(x) ((x) ? (void)0 : assert_failed(#x, __FILE__, __LINE__))
#else
#define ASSERT(x) ((void)sizeof(!(x)))
#endif
#define ASSERT_VALID(x) ASSERT(x)
/* Checked in every build: going on would lose or leak a client's data. */
#define BUG_ON(x) (unlikely(x) ? assert_failed(#x, __FILE__, __LINE__) : (void)0)

#endif
