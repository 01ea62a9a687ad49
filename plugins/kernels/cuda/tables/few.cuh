// SPDX-License-Identifier: Apache-2.0
//
// The output head for up to 16 rows of x in one read of the table. Each block keeps x in shared
// memory, and each of its warps takes 16 table rows at a time through a ring of its own, so that
// nothing waits but for memory. The first stretches are on their way before x is there.

#ifndef NQ_CUDA_TABLES_FEW_CUH
#define NQ_CUDA_TABLES_FEW_CUH

#include "cuda/tables/stretch.cuh"

namespace nq_cuda {
namespace tables {

constexpr int kFewStages = 4;  // stretches of a warp's ring
constexpr int kFewMostWarps = 16;
constexpr int kFewRingBytes = kFewStages * kStretchBytes;
constexpr int kFewFactorBytes = 128;

struct Few {
  nq_cuda_output output;
  int64_t first;  // row of x and logits
  int rows;
  int blocks;  // of 32 columns, padded to whole stretches
  int x_bytes;
};

// The row of x that logits row `row` is of.
__device__ __forceinline__ int64_t x_row(const nq_cuda_output& o, int64_t row) {
  return o.ends == nullptr ? row : max(o.ends[row], 1) - 1;
}

__device__ __forceinline__ Norm norm_of(const nq_cuda_output& o) {
  return {o.norm,        o.x_type,    o.norm_eps,
          o.norm_weight, o.norm_bias, static_cast<int>(o.table.columns)};
}

// BITS of the table; OPERAND is the type that is multiplied; GROUPED: several scales a row; TILES
// of 8 rows of x. WHOLE: see TableReader.
template <int BITS, nq_type OPERAND, bool GROUPED, int TILES, bool WHOLE>
__global__ void __launch_bounds__(kFewMostWarps * 32, 1) few(const __grid_constant__ Few p) {
  constexpr int kBlocks = kStretchBlocks<BITS>;
  constexpr int kEach = kBlocks / 4 > 0 ? kBlocks / 4 : 1;  // blocks whose scales a lane reads
  const nq_cuda_output& o = p.output;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int g = lane / 4, q = lane % 4;
  const uint32_t x = shared_address(dynamic_shared());
  const uint32_t factors = x + p.x_bytes;
  const uint32_t ring = factors + kFewFactorBytes + warp * kFewRingBytes;

  const TableReader<WHOLE> reader(o.table, lane);
  const ScaleReader<WHOLE> scale_of(o.table);
  const int stretches = p.blocks / kBlocks;
  const int64_t tiles = (o.table.rows + kStretchRows - 1) / kStretchRows;
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
  // Of a last round that is not full, every multiprocessor gets its share.
  const int64_t first_tile = static_cast<int64_t>(warp) * gridDim.x + blockIdx.x;

  int64_t ahead_tile = first_tile;
  int ahead_stretch = 0, ahead_slot = 0;
  const auto read_ahead = [&]() {
    if (ahead_tile < tiles) {
      reader.read(ahead_tile * kStretchRows, ahead_stretch, ring + ahead_slot * kStretchBytes);
    }
    copy_async_commit();
    ahead_slot = ahead_slot + 1 == kFewStages ? 0 : ahead_slot + 1;
    if (++ahead_stretch == stretches) ahead_stretch = 0, ahead_tile += step;
  };
  for (int i = 0; i < kFewStages - 1; ++i) read_ahead();

  // A lane reads the scales of its quad's rows for some blocks of the next stretch.
  uint32_t next_scales[2 * kEach];
  const auto read_scales = [&](int64_t tile, int stretch) {
#pragma unroll
    for (int i = 0; i < 2 * kEach; ++i) {
      next_scales[i] =
          scale_of.load(tile * kStretchRows + g + i % 2 * 8, stretch * kBlocks + q * kEach + i / 2);
    }
  };
  if (GROUPED && first_tile < tiles) read_scales(first_tile, 0);

  wait_for_predecessors();
  for (int row = warp; row < p.rows; row += warps) {
    const Norm norm = norm_of(o);
    const float factor =
        deal_row<BITS>(norm, o.x, x_row(o, p.first + row) * o.x_stride, OPERAND, p.blocks, lane,
                       [&](int block, int place, uint32_t word) {
                         store_shared(x + (block * p.rows + row) * kRowBytes + place, word);
                       });
    if (lane == 0) store_shared(factors + row * 4, factor);
  }
  __syncthreads();
  release_dependents();

  int slot = 0;
  for (int64_t tile = first_tile; tile < tiles; tile += step) {
    float sums[TILES][4] = {};
    uint32_t row_scale[2];
    if (BITS != 16 && !GROUPED) {
      row_scale[0] = scale_of.load(tile * kStretchRows + g, 0);
      row_scale[1] = scale_of.load(tile * kStretchRows + g + 8, 0);
    }
    for (int stretch = 0; stretch < stretches; ++stretch) {
      copy_async_wait<kFewStages - 2>();
      __syncwarp();
      read_ahead();
      float scales[2][kEach];
      if constexpr (GROUPED) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          scales[0][i] = scale_of.value(next_scales[2 * i]);
          scales[1][i] = scale_of.value(next_scales[2 * i + 1]);
        }
        const bool last = stretch + 1 == stretches;
        const int64_t next_tile = last ? tile + step : tile;
        if (next_tile < tiles) read_scales(next_tile, last ? 0 : stretch + 1);
      }

      const uint32_t from = ring + slot * kStretchBytes;
      Operand<BITS> rows;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        rows.load(from, block, lane);
        const uint32_t x_block = x + (stretch * kBlocks + block) * p.rows * kRowBytes;
        float scale[2];
        if constexpr (GROUPED) {
          const int owner = (lane & ~3) | block / kEach;
          scale[0] = __shfl_sync(0xffffffffu, scales[0][block % kEach], owner);
          scale[1] = __shfl_sync(0xffffffffu, scales[1][block % kEach], owner);
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          uint4 words = make_uint4(0, 0, 0, 0);
          if (t * 8 + g < p.rows)
            words = load_shared_16(x_block + (t * 8 + g) * kRowBytes + q * 16);
          if constexpr (GROUPED) {
            float part[4] = {};
            multiply<OPERAND>(part, rows.step[0], words.x, words.y);
            multiply<OPERAND>(part, rows.step[1], words.z, words.w);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[t][i] += part[i] * scale[i / 2];
          } else {
            multiply<OPERAND>(sums[t], rows.step[0], words.x, words.y);
            multiply<OPERAND>(sums[t], rows.step[1], words.z, words.w);
          }
        }
      }
      slot = slot + 1 == kFewStages ? 0 : slot + 1;
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = t * 8 + 2 * q + i % 2;
        const int64_t place = tile * kStretchRows + g + i / 2 * 8;
        if (row >= p.rows || place >= o.table.rows) continue;
        float value = sums[t][i] * load_shared(factors + row * 4);
        if (BITS != 16 && !GROUPED) value *= scale_of.value(row_scale[i / 2]);
        o.logits[(p.first + row) * o.logits_stride + place] = soften(value, o.soft_cap);
      }
    }
  }
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_FEW_CUH
