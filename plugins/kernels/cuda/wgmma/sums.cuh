// SPDX-License-Identifier: Apache-2.0
//
// The consumers' sums over a tile: sign matrix in registers times panel in shared memory, and
// adding up what the blocks of a cluster found.

#ifndef NQ_CUDA_WGMMA_SUMS_CUH
#define NQ_CUDA_WGMMA_SUMS_CUH

#include "cuda/wgmma/instructions.cuh"
#include "cuda/wgmma/types.cuh"

namespace nq_cuda {

template <int N, bool FIRST, bool BYTES>
struct Consumer {
  using Shape = WgmmaShape<N, BYTES>;
  using Value = typename Sum<BYTES>::Type;
  static constexpr int kFactors = (N + 31) / 32;

  static __device__ __forceinline__ uint32_t to_bits(Value value) {
    if constexpr (BYTES)
      return static_cast<uint32_t>(value);
    else
      return __float_as_uint(value);
  }
  static __device__ __forceinline__ Value from_bits(uint32_t bits) {
    if constexpr (BYTES)
      return static_cast<int>(bits);
    else
      return __uint_as_float(bits);
  }

  const WgmmaStage& stage;
  uint32_t base, full_panel, empty_panel, full_signs, empty_signs;
  int warp, lane;
  Ring<Shape::kPanelStages> panel;
  Ring<Shape::kSignStages> signs;

  // A lane's 16 bytes of signs in the first buffer: of tile `unit`, or of its neighbours' shares.
  __device__ __forceinline__ uint32_t signs_at(int unit) const {
    return base + Shape::kSignsAt +
           (FIRST ? ((unit & 1) * 8 + lane / 4) * 512 + ((unit >> 1) * 4 + lane % 4) * 16
                  : unit * 512 + lane * 16);
  }

  // Sums over the tile's steps.
  __device__ __forceinline__ void accumulate(const WgmmaTile& tile, Value (&sums)[N / 2]) {
    constexpr int kPerBlock = 4 / Shape::kIssue;
    const uint32_t from = signs_at(warp);
    int last = -1;  // the panel stage that the multiplies in flight read
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = 0;
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(full_signs + signs.index * 8, signs.parity);
      const uint4 words = load_shared_16(from + signs.index * kSignBytes);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_signs + signs.index * 8);
      signs.next();
#pragma unroll
      for (int block = 0; block < Shape::kBlocks; ++block) {
        const int inside = block % Shape::kPerStage;
        uint64_t operand = 0;
#pragma unroll
        for (int part = 0; part < kPerBlock; ++part) {
          uint32_t a[Shape::kIssue][4];
#pragma unroll
          for (int k = 0; k < Shape::kIssue; ++k) {
            unpack_signs<BYTES>(words, block * 4 + part * Shape::kIssue + k, a[k]);
          }
          if (part == 0) {
            if (inside == 0) barrier_wait(full_panel + panel.index * 8, panel.parity);
            operand =
                swizzled_operand(base + Shape::kPanelAt +
                                 (panel.index * Shape::kPerStage + inside) * Shape::kBlockBytes);
          }
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < Shape::kIssue; ++k) {
            wgmma(sums, a[k], operand + (part * Shape::kIssue + k) * 2);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (part == 0 && inside == 0) {
            if (last >= 0 && lane == 0) barrier_arrive(empty_panel + last * 8);
            last = panel.index;
          }
        }
        if (inside == Shape::kPerStage - 1) panel.next();
      }
    }
    wgmma_wait<0>();
    if (last >= 0 && lane == 0) barrier_arrive(empty_panel + last * 8);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if constexpr (BYTES) {
        asm volatile("" : "+r"(sums[i])::"memory");
      } else {
        asm volatile("" : "+f"(sums[i])::"memory");
      }
    }
  }

  // The same with warp-level multiplies. A warpgroup's multiply reads its registers for 32 cycles
  // however few rows of x there are; these don't. Warps `warp` and `warp ^ 8` work on each other's
  // 16 rows as well, each over one half of every step: an operand from shared memory serves twice.
  __device__ __forceinline__ void accumulate_in_warps(const WgmmaTile& tile, Value (&sums)[N / 2]) {
    constexpr int kMultiplies = Shape::kBlocks * 2;  // of a half step
    const int half = warp / 8, column = lane / 8 % 2, line = lane / 16 * 8 + lane % 8;
    const uint32_t from[2] = {signs_at(warp % 8), signs_at(warp % 8 + 8)};
    Value parts[2][N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) parts[0][i] = parts[1][i] = 0;
#pragma unroll 1
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(full_signs + signs.index * 8, signs.parity);
      uint4 words[2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        words[t] = load_shared_16(from[t] + signs.index * kSignBytes);
        const int shift = half * kMultiplies;
        words[t].x >>= shift, words[t].y >>= shift, words[t].z >>= shift, words[t].w >>= shift;
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_signs + signs.index * 8);
      signs.next();
      barrier_wait(full_panel + panel.index * 8, panel.parity);
      const uint32_t rows =
          base + Shape::kPanelAt +
          (panel.index * Shape::kPerStage + half * (Shape::kBlocks / 2)) * Shape::kBlockBytes +
          line * 128;
#pragma unroll
      for (int k = 0; k < kMultiplies; ++k) {
        uint32_t a[2][4];
        unpack_signs<BYTES>(words[0], k, a[0]);
        unpack_signs<BYTES>(words[1], k, a[1]);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
          const uint4 b = load_matrices(rows + k / 4 * Shape::kBlockBytes + n * 2048 +
                                        (((k % 4 * 2 + column) ^ (lane % 8)) << 4));
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            multiply(&parts[t][8 * n], a[t], b.x, b.y);
            multiply(&parts[t][8 * n + 4], a[t], b.z, b.w);
          }
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_panel + panel.index * 8);
      panel.next();
    }
    const uint32_t staging = base + Shape::kStagingAt;
    named_barrier(5, kConsumers);  // nobody reads the last tile's results any more
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      uint32_t bits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        bits[i] = to_bits(half ? parts[0][4 * j + i] : parts[1][4 * j + i]);
      store_shared(staging + (j * kConsumers + warp * 32 + lane) * 16,
                   make_uint4(bits[0], bits[1], bits[2], bits[3]));
    }
    named_barrier(5, kConsumers);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const uint4 other = load_shared_16(staging + (j * kConsumers + (warp ^ 8) * 32 + lane) * 16);
      const uint32_t bits[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * j + i;
        // The first half of the columns comes first, in either warp.
        const Value mine = half ? parts[1][at] : parts[0][at];
        sums[at] = half ? from_bits(bits[i]) + mine : mine + from_bits(bits[i]);
      }
    }
    named_barrier(5, kConsumers);
  }

  __device__ __forceinline__ uint32_t exchange(int block) const {
    return base + Shape::kPanelAt + (block * kConsumers + warp * 32 + lane) * 16;
  }

  // Half `half` of this warpgroup's columns belongs to one block of the cluster.
  __device__ __forceinline__ bool owns(int half, int rank, int ranks) const {
    return ((warp / 4) * 2 + half) * ranks / (2 * kGroups) == rank;
  }

  __device__ __forceinline__ void share(const Value (&sums)[N / 2]) const {
    named_barrier(5, kConsumers);  // nobody reads the panel any more
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      store_shared(exchange(j), make_uint4(to_bits(sums[4 * j]), to_bits(sums[4 * j + 1]),
                                           to_bits(sums[4 * j + 2]), to_bits(sums[4 * j + 3])));
    }
  }

  template <int HALF>
  __device__ __forceinline__ void gather(Value (&sums)[N / 2], int ranks) const {
#pragma unroll
    for (int j = HALF * N / 16; j < (HALF + 1) * N / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[4 * j + i] = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const uint4 other = cluster_load(exchange(j), rank);
        const uint32_t bits[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[4 * j + i] += from_bits(bits[i]);
      }
    }
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_SUMS_CUH
