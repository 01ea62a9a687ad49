// SPDX-License-Identifier: Apache-2.0
//
// A tile times the fragments of a slice, in integers, and where the sums of a block's warps meet.

#ifndef NQ_CUDA_GEMV_TILE_CUH
#define NQ_CUDA_GEMV_TILE_CUH

#include "cuda/gemv/convert.cuh"
#include "cuda/gemv/ring.cuh"

namespace nq_cuda {

// Shared memory of a block: each warp's ring of weights and its scratch, the sums of squares, then
// the sums of all warps, those of one output next to each other.
template <int ROWS, int KPW>
struct GemvShape {
  static constexpr int kScratchBytes = KPW * kFragmentWords * 4;
  static constexpr int kWarpBytes = GemvRing<KPW>::kBytes + kScratchBytes;
  static constexpr int kNormBytes = kGemvWarps * ROWS * 4;
  static constexpr int kSumBytes = (kGemvWarps + 4) * 4;  // of one output: no bank conflicts

  static int shared_bytes(int warps, int tiles_per_pass) {
    return warps * kWarpBytes + kNormBytes + tiles_per_pass * 16 * ROWS * kSumBytes;
  }
};

// The sum of one float of each warp, from a 16-byte aligned address on, in a fixed order.
__device__ __forceinline__ float add_warps(uint32_t values, int warps) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kGemvWarps; i += 4) {
    if (i < warps) {
      const uint4 four = load_shared_16(values + i * 4);
      sum += __uint_as_float(four.x);
      if (i + 1 < warps) sum += __uint_as_float(four.y);
      if (i + 2 < warps) sum += __uint_as_float(four.z);
      if (i + 3 < warps) sum += __uint_as_float(four.w);
    }
  }
  return sum;
}

// The integers of one tile: popcounts (or products) per fragment and accumulator.
template <int ROWS, bool BITS>
struct TileSums {
  static constexpr int kPlanes = BITS ? ROWS : (ROWS > 4 ? 2 : 1);  // fragments of a column tile
  int of[kPlanes][BITS ? 2 : 1][4];
};

template <int ROWS, int KPW, bool BITS>
__device__ __forceinline__ void multiply(
    const uint4 (&a)[KPW], const uint4 (&planes)[TileSums<ROWS, BITS>::kPlanes][KPW][BITS ? 1 : 4],
    TileSums<ROWS, BITS>& sums) {
#pragma unroll
  for (int p = 0; p < TileSums<ROWS, BITS>::kPlanes; ++p) {
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      if constexpr (BITS) {
        const uint4& b = planes[p][k][0];
        mma_bits(sums.of[p][0], a[k], b.x, b.y);
        mma_bits(sums.of[p][1], a[k], b.z, b.w);
      } else {
#pragma unroll
        for (int s = 0; s < 8; ++s) {
          const uint4& b = planes[p][k][s / 2];
          mma_bytes(sums.of[p][0], (a[k].x >> s) & 0x01010101u, (a[k].y >> s) & 0x01010101u,
                    (a[k].z >> s) & 0x01010101u, (a[k].w >> s) & 0x01010101u, s % 2 ? b.z : b.x,
                    s % 2 ? b.w : b.y);
        }
      }
    }
  }
}

// Folds a tile's integers into this warp's sums: rows g and g + 8 of the tile for each row of
// activations, at `to` for row g. `q` is the lane's place among four, `sign` the factor of its
// highest plane.
template <int ROWS, bool BITS>
__device__ __forceinline__ void fold(const TileSums<ROWS, BITS>& sums, const float (&scales)[ROWS],
                                     const int (&totals)[ROWS], int q, int sign, uint32_t to,
                                     bool add) {
  constexpr int kStride = GemvShape<ROWS, 1>::kSumBytes;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    int upper, lower;
    if constexpr (BITS) {
      // This lane has planes 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q; plane 15 is the sign's.
      const int* low = sums.of[row][0];
      const int* high = sums.of[row][1];
      upper = (low[0] + 2 * low[1] + 256 * high[0] + sign * high[1]) << (2 * q);
      lower = (low[2] + 2 * low[3] + 256 * high[2] + sign * high[3]) << (2 * q);
      upper += __shfl_xor_sync(0xffffffffu, upper, 1);
      lower += __shfl_xor_sync(0xffffffffu, lower, 1);
      upper += __shfl_xor_sync(0xffffffffu, upper, 2);
      lower += __shfl_xor_sync(0xffffffffu, lower, 2);
    } else {
      // This lane has both digits of row q of each fragment.
      const int* sum = sums.of[row / 4][0];
      upper = sum[0] + 256 * sum[1];
      lower = sum[2] + 256 * sum[3];
    }
    if (q == (BITS ? 0 : row % 4)) {
      float above = scales[row] * static_cast<float>(totals[row] - 2 * upper);
      float below = scales[row] * static_cast<float>(totals[row] - 2 * lower);
      const uint32_t high = to + row * kStride, low = high + 8 * ROWS * kStride;
      if (add) above += load_shared(high), below += load_shared(low);
      store_shared(high, above);
      store_shared(low, below);
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_TILE_CUH
