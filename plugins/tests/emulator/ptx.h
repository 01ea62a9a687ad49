// SPDX-License-Identifier: Apache-2.0
//
// What cuda/ptx.cuh, cuda/mma/instructions.cuh and (matrices.h) cuda/attention/instructions.cuh
// offer, for the emulator; included before everything else in place of both.

#ifndef NQ_EMULATOR_PTX_H
#define NQ_EMULATOR_PTX_H
#define NQ_CUDA_PTX_CUH
#define NQ_CUDA_MMA_INSTRUCTIONS_CUH

#include "cuda_runtime.h"

namespace nq_cuda {

using nq_emulator::shared_address;

inline uint4 load_shared_16(uint32_t address) {
  uint4 value;
  memcpy(&value, nq_emulator::shared_pointer(address), 16);
  return value;
}
inline float load_shared(uint32_t address) {
  float value;
  memcpy(&value, nq_emulator::shared_pointer(address), 4);
  return value;
}
template <typename T>
void store_shared(uint32_t address, const T& value) {
  memcpy(nq_emulator::shared_pointer(address), &value, sizeof value);
}
inline uint64_t read_once_policy() { return 0; }
inline void copy_async_16(uint32_t shared, const void* global, uint64_t = 0) {
  nq_emulator::copy_later(shared, global);
}
inline void prefetch_stretch(const void*, uint32_t) {}
template <typename T>
void keep(T&) {}
inline void copy_async_commit() { nq_emulator::commit_copies(); }
template <int N>
void copy_async_wait() {
  nq_emulator::wait_copies(N);
}
inline void release_dependents() {}
inline void wait_for_predecessors() {}
inline float reciprocal(float value) { return 1.0f / value; }

inline uint32_t warp_max(uint32_t value) {
  const auto all = nq_emulator::exchange(&value, 1);
  for (int i = 0; i < 32; ++i) value = max(value, all[i][0]);
  return value;
}
inline int warp_sum(int value) {
  const auto all = nq_emulator::exchange(reinterpret_cast<const uint32_t*>(&value), 1);
  uint32_t sum = 0;
  for (int i = 0; i < 32; ++i) sum += all[i][0];
  return static_cast<int>(sum);
}
inline float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The fragments of both products (PTX ISA, matrix fragments for mma.m16n8k256 and mma.m16n8k32 with
// .s8): lane 4 g + q has a0, a2 of row g and a1, a3 of row g + 8, parts q and 4 + q of the columns,
// b0, b1 of column g, and the sums of rows g and g + 8 with columns 2 q and 2 q + 1.
template <typename Dot>
void multiply_fragments(int (&d)[4], const uint32_t (&words)[6], Dot dot) {
  const auto all = nq_emulator::exchange(words, 6);
  const int g = nq_emulator::lane() / 4, q = nq_emulator::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int below = i / 2, column = 2 * q + i % 2;
    for (int part = 0; part < 4; ++part) {
      const uint32_t* a = all[4 * g + part];
      const uint32_t* b = all[4 * column + part];
      d[i] += dot(a[below], b[4]) + dot(a[2 + below], b[5]);
    }
  }
}

inline int dot_bits(uint32_t a, uint32_t b) { return __builtin_popcount(a & b); }
inline int dot_bytes(uint32_t a, uint32_t b) {
  int sum = 0;
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int8_t>(a >> i & 0xff) * static_cast<int8_t>(b >> i & 0xff);
  }
  return sum;
}

inline void mma_bits(int (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  multiply_fragments(d, {a.x, a.y, a.z, a.w, b0, b1}, dot_bits);
}
inline void mma_bytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                      uint32_t b1) {
  multiply_fragments(d, {a0, a1, a2, a3, b0, b1}, dot_bytes);
}

namespace mma {

template <bool FIRST>
void multiply(int (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if (FIRST) acc[0] = acc[1] = acc[2] = acc[3] = 0;
  multiply_fragments(acc, {a[0], a[1], a[2], a[3], b0, b1}, dot_bytes);
}
inline uint32_t block_index() { return blockIdx.x; }

}  // namespace mma

}  // namespace nq_cuda

#include "matrices.h"

#endif  // NQ_EMULATOR_PTX_H
