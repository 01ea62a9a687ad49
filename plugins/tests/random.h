// SPDX-License-Identifier: Apache-2.0
//
// A small generator of random numbers that gives every machine the same ones (xorshift64*, Vigna
// 2016), so that a failed case can be run again.

#ifndef NQ_TESTS_RANDOM_H
#define NQ_TESTS_RANDOM_H

#include <stdint.h>

// Never 0; a test may set it to run another sequence.
inline uint64_t random_state = 0x9e3779b97f4a7c15u;

inline uint64_t random_word() {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1du;
}

// The better half of a word.
inline uint32_t random_bits() { return static_cast<uint32_t>(random_word() >> 32); }

// From -1 to below 1.
inline float random_float() { return static_cast<float>(random_bits() >> 8) * 0x1p-23f - 1.0f; }

#endif  // NQ_TESTS_RANDOM_H
