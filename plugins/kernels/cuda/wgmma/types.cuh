// SPDX-License-Identifier: Apache-2.0
//
// What one stage of the warpgroup product is: its arguments, its tiles, its shared memory.

#ifndef NQ_CUDA_WGMMA_TYPES_CUH
#define NQ_CUDA_WGMMA_TYPES_CUH

#include "cuda/values.cuh"
#include "cuda/wgmma/panels.h"

namespace nq_cuda {

constexpr int kGroups = 4;                 // consumer warpgroups
constexpr int kConsumers = kGroups * 128;  // threads
constexpr int kWgmmaThreads = kConsumers + 128;
constexpr int kTileM = kGroups * 64;
constexpr int kSignBytes = kTileM * 32;  // of one step
constexpr int kSignWarps = 2;            // that copy signs, beside one that copies the panel
constexpr int kConsumerRegisters = 112, kProducerRegisters = 32;

struct WgmmaPart {
  const void* signs;     // layout 1
  const void* panel;     // of this stage
  const void* scale;     // by row of signs, or null for 1
  const void* bias;      // or null
  const void* residual;  // or null
  void* y;               // stage 2: y; stage 1: the next panel
  int64_t stride;        // of y
  const float* factor;   // by row of x
  const float* range;    // by which every result is multiplied
  int rows;              // of the sign matrix
  int steps;             // of 256 columns
  int first_tile;        // in the row of M tiles of all parts
};

struct WgmmaStage {
  int rows;     // of x
  int groups;   // of 8 of them
  int m_tiles;  // of all parts
  int n_tiles;
  int begin;  // the launch computes tiles begin to begin + tiles
  int tiles;
  int count;
  nq_type scale_type;
  nq_type y_type;
  WgmmaPart parts[NQ_CUDA_MAX_GROUP];
};

template <int N, bool BYTES>
struct WgmmaShape {
  static constexpr int kBlocks = BYTES ? 2 : 4;            // panel blocks a step
  static constexpr int kPerStage = N <= 32 ? kBlocks : 1;  // panel blocks a pipeline stage
  static constexpr int kBlockBytes = N * 128;
  static constexpr int kPanelStages = N == 128 ? 8 : (N == 64 ? 12 : (N == 32 ? 6 : 10));
  static constexpr int kSignStages = N == 128 ? 3 : (N == 64 ? 5 : 8);
  static constexpr bool kWarps = N <= 32;          // warp-level multiplies are faster
  static constexpr int kIssue = N == 128 ? 2 : 4;  // multiplies committed together
  static constexpr int kPanelAt = 0;
  static constexpr int kSignsAt = kPanelStages * kPerStage * kBlockBytes;
  static constexpr int kStagingAt = kSignsAt + kSignStages * kSignBytes;
  static constexpr int kBarriersAt = kStagingAt + N * (kWarps ? 1024 : 512);
  static constexpr int kBytes = kBarriersAt + 16 * (kPanelStages + kSignStages) + 1024;
  static_assert(kSignsAt >= N * 1024, "the blocks of a cluster exchange sums in the panel's room");
  static_assert(kBytes <= 227 * 1024, "shared memory of sm_90");
};

// A place in a ring of `SIZE` buffers and how often it went round.
template <int SIZE>
struct Ring {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++index == SIZE) {
      index = 0;
      parity ^= 1u;
    }
  }
};

struct WgmmaTile {
  int part, m, n, begin, end;  // m: tile within the part; steps begin to end
};

__device__ __forceinline__ WgmmaTile wgmma_tile(const WgmmaStage& stage, int index, int rank,
                                                int ranks) {
  // Four columns of tiles at a time: their panels stay in the L2 cache while the signs pass by.
  constexpr int kTogether = 4;
  const int area = kTogether * stage.m_tiles;
  const int number = stage.begin + index;
  const int column = number / area * kTogether, inside = number % area;
  const int width = min(kTogether, stage.n_tiles - column);
  WgmmaTile tile;
  const int m = inside / width;
  tile.n = column + inside % width;
  tile.part = 0;
  while (tile.part + 1 < stage.count && m >= stage.parts[tile.part + 1].first_tile) ++tile.part;
  tile.m = m - stage.parts[tile.part].first_tile;
  const int steps = stage.parts[tile.part].steps;
  tile.begin = steps * rank / ranks;
  tile.end = steps * (rank + 1) / ranks;
  return tile;
}

// Operand A of the multiply number `k` of a step, from a lane's 16 bytes of a tile: bits k and
// k + 16 of a word as signs of two halves, or bits k, k + 8, k + 16, k + 24 as +-1 bytes.
template <bool BYTES>
__device__ __forceinline__ void unpack_signs(const uint4& words, int k, uint32_t (&a)[4]) {
  const uint32_t from[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (BYTES) {
      a[i] = (from[i] >> k & 0x01010101u) * 0xfeu + 0x01010101u;
    } else {
      a[i] = (from[i] << (15 - k) & 0x80008000u) ^ 0x3c003c00u;
    }
  }
}

template <bool BYTES>
struct Sum {
  using Type = float;
};
template <>
struct Sum<true> {
  using Type = int;
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_TYPES_CUH
