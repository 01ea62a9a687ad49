// SPDX-License-Identifier: Apache-2.0
//
// What the kernels that choose tokens share: a sequence's turn, its scratch memory, keys that order
// logits and places, and what follows from a choice.

#ifndef NQ_CUDA_CHOICE_TYPES_CUH
#define NQ_CUDA_CHOICE_TYPES_CUH

#include <cstdint>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "nq_cuda_table.h"

namespace nq_cuda {
namespace choice {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMostBlocks = 32;           // that share a sequence's logits
constexpr int kBins = 2048;               // of a histogram
constexpr int kListed = 8192;             // most candidates that are listed
constexpr int kMostVocabulary = 1 << 20;  // tokens fit 20 bits
using Key = unsigned long long;

// One sequence between the launches of a choice. Everything is zero before the first use, and what
// the next choice relies on (`best`, `arrived`, `listed`, bins and seen bits) is zero after each.
struct State {
  Key best;          // of the blocks that have finished
  unsigned arrived;  // blocks that have
  unsigned listed;   // candidates in the list
  float highest;     // score; NaN where nothing is to be drawn
  unsigned cut;      // last bin that can hold a candidate
  unsigned some;     // whether the candidates fit the list
  unsigned unused;
  Key mass;  // of all tokens, see select.cuh
};

// Where things are, in 32-bit words from the sequence's State on.
struct Layout {
  int64_t counts, deficits, distances, tokens, seen, words;

  __host__ __device__ explicit Layout(int64_t vocabulary) {
    counts = 64;
    deficits = counts + kBins;
    distances = deficits + kBins;
    tokens = distances + kListed;
    seen = tokens + kListed;
    words = seen + (vocabulary + 2047) / 2048 * 64;
  }
};

__device__ __forceinline__ State* state_of(const nq_cuda_choice& c, int64_t sequence) {
  const Layout layout(c.vocabulary);
  return reinterpret_cast<State*>(static_cast<uint32_t*>(c.workspace) + sequence * layout.words);
}

// Part of a sequence's scratch memory.
__device__ __forceinline__ uint32_t* words_of(State* state, int64_t at) {
  return reinterpret_cast<uint32_t*>(state) + at;
}

// The place of the sequence's next token; -1 when it has no turn.
__device__ __forceinline__ int64_t next_place(const nq_cuda_choice& c, int64_t sequence) {
  const int64_t before = c.positions[sequence];
  const int fresh = c.starts == nullptr ? 1 : c.starts[sequence + 1] - c.starts[sequence];
  const int64_t place = before + fresh;
  return before < 0 || fresh < 1 || place >= c.capacity ? -1 : place;
}

__device__ __forceinline__ void commit(const nq_cuda_choice& c, int64_t sequence, int64_t place,
                                       int64_t token) {
  c.tokens[sequence] = token;
  c.history[sequence * c.capacity + place] = token;
  c.positions[sequence] = place;
}

// Unsigned numbers in the order of the floats; a NaN is above all.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return 0xffffffffu;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ Key warp_most(Key value) {
  for (int step = 16; step > 0; step /= 2) {
    const uint32_t high = __shfl_xor_sync(0xffffffffu, static_cast<uint32_t>(value >> 32), step);
    const uint32_t low = __shfl_xor_sync(0xffffffffu, static_cast<uint32_t>(value), step);
    const Key other = static_cast<Key>(high) << 32 | low;
    value = other > value ? other : value;
  }
  return value;
}

// The largest of the block's values, in thread 0. Called once by a kernel.
__device__ __forceinline__ Key block_most(Key value) {
  __shared__ Key of_warp[kWarps];
  value = warp_most(value);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; threadIdx.x == 0 && warp < kWarps; ++warp) {
    value = of_warp[warp] > value ? of_warp[warp] : value;
  }
  return value;
}

// Whether this block is the last of its sequence to come here; what the others wrote before is
// visible then. For all threads.
__device__ __forceinline__ bool arrive_last(State* state) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&state->arrived, 1u) == gridDim.x - 1;
    if (last) state->arrived = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Blocks that share a sequence's logits.
inline dim3 grid_of(const nq_cuda_choice& c) {
  const int64_t wanted = ceil_div(c.vocabulary, 4 * kThreads);
  return dim3(static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks),
              static_cast<unsigned>(c.sequences));
}

// The step from one of a thread's tokens to the next.
__device__ __forceinline__ int64_t stride_of_grid() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

// Checks what nq_cuda_choose and nq_cuda_sample are given; in greedy.cu.
nq_status check_choice(const nq_cuda_choice* choice);

// The greedy kernel: of sequences that draw (with `sampled`), it only finds the highest score.
nq_status find_highest(const nq_cuda_choice& c, bool sampled, bool overlap, cudaStream_t stream);

}  // namespace choice
}  // namespace nq_cuda

#endif  // NQ_CUDA_CHOICE_TYPES_CUH
