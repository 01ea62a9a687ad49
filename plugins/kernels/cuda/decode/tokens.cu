// SPDX-License-Identifier: Apache-2.0
//
// Where a decode step begins and ends: the rows of the embedding table, and the greedy choice with
// its write-back. Neither overlaps its neighbours (no programmatic dependent launch), so that the
// kernels between them may read positions and cache ahead.

#include <cstdint>

#include "cuda/launch.h"
#include "nq_cuda_decode.h"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 32;  // blocks that share a sequence's logits

__global__ void __launch_bounds__(kThreads)
    gather_rows(const uint4* table, int64_t table_rows, int64_t width, const int64_t* tokens,
                uint4* out) {
  const int64_t token = tokens[blockIdx.y];
  if (token < 0 || token >= table_rows) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column < width) out[blockIdx.y * width + column] = table[token * width + column];
}

// Larger logits have larger keys, and of equal logits the first place has the largest.
__device__ unsigned long long key_of(float logit, int64_t place) {
  const uint32_t bits = __float_as_uint(logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 |
         (0xffffffffu - static_cast<uint32_t>(place));
}

struct Slot {
  unsigned long long best;
  unsigned finished;
  unsigned unused;
};

__global__ void __launch_bounds__(kThreads) choose(const nq_cuda_choice c) {
  __shared__ unsigned long long best_of_warp[kThreads / 32];
  const int64_t sequence = blockIdx.y;
  const float* logits = c.logits + sequence * c.vocabulary;
  unsigned long long best = 0;  // below every key
#pragma unroll 8
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < c.vocabulary;
       i += kBlocks * kThreads) {
    const unsigned long long key = key_of(logits[i], i);
    best = key > best ? key : best;
  }
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) best_of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / 32; ++warp) {
    best = best_of_warp[warp] > best ? best_of_warp[warp] : best;
  }
  Slot* slot = static_cast<Slot*>(c.workspace) + sequence;
  atomicMax(&slot->best, best);
  __threadfence();
  if (atomicAdd(&slot->finished, 1u) != gridDim.x - 1) return;
  __threadfence();
  // Everything of this sequence has arrived; the slot is left as it was found.
  const unsigned long long key = atomicExch(&slot->best, 0ull);
  slot->finished = 0;
  const int64_t token = 0xffffffffu - static_cast<uint32_t>(key);
  const int64_t place = c.positions[sequence];
  if (place < 0 || place >= c.capacity) return;
  c.tokens[sequence] = token;
  c.chosen[sequence * c.capacity + place] = token;
  c.positions[sequence] = place + 1;
}

}  // namespace

}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" nq_status nq_cuda_gather_rows(const void* table, int64_t table_rows, int64_t row_bytes,
                                         const int64_t* tokens, int64_t count, void* out,
                                         void* stream) {
  if (table == nullptr || tokens == nullptr || out == nullptr || !aligned(table) || !aligned(out) ||
      table_rows < 1 || row_bytes < 16 || row_bytes % 16 != 0 || count < 1) {
    return NQ_BAD_ARGUMENT;
  }
  if (row_bytes > NQ_MAX_DIM) return NQ_TOO_LARGE;
  const int64_t width = row_bytes / 16, most = 0xffff;  // blocks in y
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t rows = count - begin < most ? count - begin : most;
    const dim3 grid(static_cast<unsigned>(ceil_div(width, kThreads)), static_cast<unsigned>(rows));
    const nq_status status =
        launch({"embedding", grid, kThreads, 0, false}, static_cast<cudaStream_t>(stream),
               gather_rows, static_cast<const uint4*>(table), table_rows, width, tokens + begin,
               static_cast<uint4*>(out) + begin * width);
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}

extern "C" nq_status nq_cuda_choose(const nq_cuda_choice* choice, void* stream) {
  if (choice == nullptr) return NQ_BAD_ARGUMENT;
  const nq_cuda_choice& c = *choice;
  const void* needed[] = {c.logits, c.tokens, c.chosen, c.positions, c.workspace};
  for (const void* pointer : needed) {
    if (pointer == nullptr || !aligned(pointer)) return NQ_BAD_ARGUMENT;
  }
  if (c.batch < 1 || c.vocabulary < 1 || c.capacity < 1) return NQ_BAD_ARGUMENT;
  if (c.batch > 0xffff || c.vocabulary > NQ_MAX_DIM) return NQ_TOO_LARGE;
  const dim3 grid(kBlocks, static_cast<unsigned>(c.batch));
  return launch({"greedy choice", grid, kThreads, 0, false}, static_cast<cudaStream_t>(stream),
                choose, c);
}
