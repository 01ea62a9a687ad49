// SPDX-License-Identifier: Apache-2.0
//
// A draw as a race: with independent exponential variables E of mean 1, the token of the smallest
// E / probability is distributed as the probabilities are. No sum is needed, and so no order.
//
// Scores enter as distances t below the highest score, divided by the temperature: a probability
// is exp(-t) but for a common factor, and the race is won by the smallest log E + t.

#ifndef NQ_CUDA_CHOICE_RACE_CUH
#define NQ_CUDA_CHOICE_RACE_CUH

#include "cuda/choice/types.cuh"

namespace nq_cuda {
namespace choice {

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
__device__ __forceinline__ uint4 philox(uint64_t seed, uint64_t place, uint32_t index) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint4 c = make_uint4(index, 0u, static_cast<uint32_t>(place), static_cast<uint32_t>(place >> 32));
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xd2511f53u) * c.x;
    const uint64_t b = static_cast<uint64_t>(0xcd9e8d57u) * c.z;
    c = make_uint4(static_cast<uint32_t>(b >> 32) ^ c.y ^ key0, static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ c.w ^ key1, static_cast<uint32_t>(a));
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return c;
}

// When a token arrives. Its exponential variable is made from 64 bits, because the winner of many
// has a tiny one: with 32 bits it would be one of a few values.
__device__ __forceinline__ float arrival(uint32_t high, uint32_t low, float distance) {
  const float uniform =
      fmaf(static_cast<float>(low) + 0.5f, 0x1p-64f, static_cast<float>(high) * 0x1p-32f);
  // The rounded quotient can be 1, which the variable never is.
  return logf(-log1pf(-fminf(uniform, 1.0f - 0x1p-24f))) + distance;
}

// Larger for earlier arrivals, and of equals for the first token; 0 for a token that never comes.
__device__ __forceinline__ Key entry(float arrives, int64_t token) {
  const Key low = 0xffffffffu - static_cast<uint32_t>(token);
  return arrives < INFINITY ? static_cast<Key>(~ordered(arrives)) << 32 | low : 0;
}

// The entry of one token of a sequence.
__device__ __forceinline__ Key entry_of(uint64_t seed, int64_t place, int64_t token,
                                        float distance) {
  const uint4 random = philox(seed, static_cast<uint64_t>(place), static_cast<uint32_t>(token / 2));
  const bool odd = token % 2 != 0;
  return entry(arrival(odd ? random.z : random.x, odd ? random.w : random.y, distance), token);
}

__device__ __forceinline__ int64_t winner(Key best) {
  return best == 0 ? -1 : static_cast<int64_t>(0xffffffffu - static_cast<uint32_t>(best));
}

}  // namespace choice
}  // namespace nq_cuda

#endif  // NQ_CUDA_CHOICE_RACE_CUH
