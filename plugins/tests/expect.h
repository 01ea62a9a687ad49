// SPDX-License-Identifier: Apache-2.0
//
// Counts what a self-test found wrong, and prints the first of it.

#ifndef NQ_TESTS_EXPECT_H
#define NQ_TESTS_EXPECT_H

#include <stdio.h>

inline int failures = 0;

inline void expect(bool condition, const char* what, double seen = 0.0) {
  if (condition) return;
  ++failures;
  if (failures < 20) printf("FAILED: %s (%g)\n", what, seen);
}

#endif  // NQ_TESTS_EXPECT_H
