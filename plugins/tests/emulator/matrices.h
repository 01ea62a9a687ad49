// SPDX-License-Identifier: Apache-2.0
//
// What cuda/attention/instructions.cuh offers, for the emulator; included by ptx.h in place of it.

#ifndef NQ_EMULATOR_MATRICES_H
#define NQ_EMULATOR_MATRICES_H
#define NQ_CUDA_ATTENTION_INSTRUCTIONS_CUH

#include "cuda/values.cuh"
#include "cuda_runtime.h"

namespace nq_cuda {

inline float power_of_two(float x) { return exp2f(x); }

// Values of 16 bits, row by row, of the matrix whose rows the lanes 8 matrix to 8 matrix + 7 name.
inline void load_matrices_as(uint32_t (&to)[4], uint32_t address, bool transposed) {
  const auto all = nq_emulator::exchange(&address, 1);
  const int g = nq_emulator::lane() / 4, q = nq_emulator::lane() % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto value = [&](int row, int column) -> uint32_t {
      uint16_t bits;
      memcpy(&bits,
             static_cast<char*>(nq_emulator::shared_pointer(all[8 * matrix + row][0])) + 2 * column,
             2);
      return bits;
    };
    to[matrix] = transposed ? value(2 * q, g) | value(2 * q + 1, g) << 16
                            : value(g, 2 * q) | value(g, 2 * q + 1) << 16;
  }
  // Nobody may write there before all have read.
  nq_emulator::sync_warp();
}
inline void load_matrices(uint32_t (&to)[4], uint32_t address) {
  load_matrices_as(to, address, false);
}
inline void load_transposed(uint32_t (&to)[4], uint32_t address) {
  load_matrices_as(to, address, true);
}

inline uint32_t transpose(uint32_t value) {
  const auto all = nq_emulator::exchange(&value, 1);
  const int g = nq_emulator::lane() / 4, q = nq_emulator::lane() % 4;
  const auto part = [&](int row) { return all[4 * row + g / 2][0] >> (16 * (g % 2)) & 0xffff; };
  return part(2 * q) | part(2 * q + 1) << 16;
}

inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  float u[2], v[2];
  unpack_pair(a, NQ_FLOAT16, &u[0], &u[1]);
  unpack_pair(b, NQ_FLOAT16, &v[0], &v[1]);
  return pack_pair(u[0] - v[0], u[1] - v[1], NQ_FLOAT16);
}

inline void copy_async_or_zero(uint32_t shared, const void* global, bool present) {
  static const uint4 zero = {};
  nq_emulator::copy_later(shared, present ? global : &zero);
}

// Fragments of mma.m16n8k16 (PTX ISA): lane 4 g + q has a0, a2 of row g and a1, a3 of row g + 8,
// pairs q and 4 + q of the columns, b0, b1 of column g.
template <nq_type Type, bool SETS = false>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto all = nq_emulator::exchange(words, 6);
  const int g = nq_emulator::lane() / 4, q = nq_emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    if (SETS) d[i] = 0.0f;
    for (int part = 0; part < 8; ++part) {
      float x[2], y[2];
      unpack_pair(all[4 * g + part % 4][part / 4 * 2 + i / 2], Type, &x[0], &x[1]);
      unpack_pair(all[4 * (2 * q + i % 2) + part % 4][4 + part / 4], Type, &y[0], &y[1]);
      d[i] += x[0] * y[0] + x[1] * y[1];
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_EMULATOR_MATRICES_H
