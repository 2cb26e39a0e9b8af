/* SPDX-License-Identifier: MIT */
/* sanitized.h - does a sanitizer watch? Then tests do less of what takes it long, or what it cannot follow. */
#ifndef TESTS_SANITIZED_H
#define TESTS_SANITIZED_H

#include <stdbool.h>

#ifdef __SANITIZE_THREAD__
#define TEST_TSAN true /* it keeps signals back, and blocks all while it calls a handler */
#else
#define TEST_TSAN false
#endif

#ifdef __SANITIZE_ADDRESS__
#define TEST_SANITIZED true
#else
#define TEST_SANITIZED TEST_TSAN
#endif

#endif
