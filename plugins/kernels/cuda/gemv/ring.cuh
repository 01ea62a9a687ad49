// SPDX-License-Identifier: Apache-2.0
//
// A warp's stream of weights: units of KPW column tiles of one row tile, on their way into a ring
// in shared memory while earlier ones are used. A lane reads only the 16 bytes of each tile that it
// asked for itself, so the ring needs no barrier.

#ifndef NQ_CUDA_GEMV_RING_CUH
#define NQ_CUDA_GEMV_RING_CUH

#include "cuda/ptx.cuh"

namespace nq_cuda {

template <int KPW>
struct GemvRing {
  static constexpr int kUnits = KPW == 1 ? 10 : KPW == 2 ? 5 : KPW == 4 ? 3 : 2;
  static constexpr int kBytes = kUnits * KPW * 512;  // a warp

  uint32_t begin;      // shared-memory address of this lane's part
  uint32_t slot;       // the oldest unit, and the next one's place
  const uint4* ahead;  // the next unit's weights
  int64_t row_step;    // from one row tile to the next
  int left;            // units not yet asked for
  int columns;         // column tiles of a unit that exist; maybe none
  uint64_t policy;

  // Asks for the next unit; to be called once for each unit that was used.
  __device__ __forceinline__ void fetch() {
    if (left > 0) {
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        if (k < columns) copy_async_16(slot + k * 512, ahead + k * 32, policy);
      }
      ahead += row_step;
      --left;
    }
    copy_async_commit();
    slot += KPW * 512;
    if (slot == begin + kBytes) slot = begin;
  }

  // Fills the empty ring from the walk that `ahead`, `left` and `columns` describe.
  __device__ __forceinline__ void fill() {
#pragma unroll 1
    for (int unit = 0; unit < kUnits; ++unit) fetch();
  }

  // Waits for the oldest unit and reads it; fetch() then reuses its place.
  __device__ __forceinline__ void take(uint4 (&tiles)[KPW]) {
    copy_async_wait<kUnits - 1>();
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      tiles[k] = make_uint4(0, 0, 0, 0);
      if (k < columns) tiles[k] = load_shared_16(slot + k * 512);
    }
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_RING_CUH
