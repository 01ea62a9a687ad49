// SPDX-License-Identifier: Apache-2.0
//
// The output head for many rows of x: a tiled product whose blocks take 128 table rows and 64 or
// 128 rows of x, which a launch before has dealt out into the workspace. Table and x come through
// one ring; codes are unpacked between shared memory and the tensor cores.

#ifndef NQ_CUDA_TABLES_MANY_CUH
#define NQ_CUDA_TABLES_MANY_CUH

#include "cuda/tables/few.cuh"

namespace nq_cuda {
namespace tables {

constexpr int kManyStages = 3;
constexpr int kManyThreads = 128;  // two warps down, two across
constexpr int kManyTableRows = 128;
constexpr int kWarpStretches = 4;  // of 16 table rows
constexpr int kStepBlocks = 2;     // of 32 columns, a stretch of a table of 16 bits
constexpr int kManyStretchBytes = kManyTableRows * 128;

// Rows of x of a block, with TILES of 8 rows for each warp.
template <int TILES>
constexpr int kManyRows = 2 * 8 * TILES;
template <int TILES>
constexpr int kStepBytes = kStepBlocks * kManyRows<TILES> * kRowBytes;
template <int TILES>
constexpr int kManyShared = kManyStages * (kManyStretchBytes + kStepBytes<TILES>);

struct Many {
  nq_cuda_output output;
  int blocks;      // of 32 columns, padded to whole steps
  int groups;      // of rows of x
  uint4* x;        // [groups][blocks][rows of a group][64 bytes]
  float* factors;  // [rows]
};

// Deals out x, a warp a row; rows are `group_rows` a group.
template <int BITS>
__global__ void __launch_bounds__(32)
    deal_many(const __grid_constant__ Many p, nq_type type, int group_rows) {
  const int64_t row = blockIdx.x;
  const int lane = threadIdx.x;
  wait_for_predecessors();
  release_dependents();
  const Norm norm = norm_of(p.output);
  const int64_t group = row / group_rows, inside = row % group_rows;
  char* to = reinterpret_cast<char*>(p.x) + group * p.blocks * group_rows * kRowBytes;
  const auto store = [&](int block, int place, uint32_t word) {
    const int64_t at = (static_cast<int64_t>(block) * group_rows + inside) * kRowBytes + place;
    *reinterpret_cast<uint32_t*>(to + at) = word;
  };
  const float factor = deal_row<BITS>(norm, p.output.x, x_row(p.output, row) * p.output.x_stride,
                                      type, p.blocks, lane, store);
  if (lane == 0) p.factors[row] = factor;
}

template <int BITS, nq_type OPERAND, bool GROUPED, int TILES>
__global__ void __launch_bounds__(kManyThreads, 2) many(const __grid_constant__ Many p) {
  constexpr int kStretchSteps = kStretchBlocks<BITS> / kStepBlocks;
  constexpr int kRows = kManyRows<TILES>;
  const nq_cuda_output& o = p.output;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, q = lane % 4;
  const uint32_t table_ring = shared_address(dynamic_shared());
  const uint32_t x_ring = table_ring + kManyStages * kManyStretchBytes;
  const int64_t group = blockIdx.x % p.groups;
  const int64_t first = static_cast<int64_t>(blockIdx.x / p.groups) * kManyTableRows;
  const char* x = reinterpret_cast<const char*>(p.x) + group * p.blocks * kRows * kRowBytes;

  const TableReader<true> reader(o.table, lane);
  const ScaleReader<true> scale_of(o.table);
  const int steps = p.blocks / kStepBlocks;
  const auto read_table = [&](int step) {
    if (step >= steps || step % kStretchSteps != 0) return;
    const int stretch = step / kStretchSteps;
    const uint32_t to = table_ring + stretch % kManyStages * kManyStretchBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int part = warp * 2 + i;
      reader.read(first + part * kStretchRows, stretch, to + part * kStretchBytes);
    }
  };
  const auto read_x = [&](int step) {
    if (step >= steps) return;
    const char* from = x + static_cast<int64_t>(step) * kStepBytes<TILES>;
    const uint32_t to = x_ring + step % kManyStages * kStepBytes<TILES>;
#pragma unroll
    for (int i = 0; i < kStepBytes<TILES> / 16; i += kManyThreads) {
      copy_async_16(to + (i + threadIdx.x) * 16, from + (i + threadIdx.x) * 16);
    }
  };
  // The table does not depend on the launch before, x does.
  for (int i = 0; i < kManyStages - 1; ++i) read_table(i);
  wait_for_predecessors();
  for (int i = 0; i < kManyStages - 1; ++i) {
    read_x(i);
    copy_async_commit();
  }

  float sums[kWarpStretches][TILES][4] = {};
  const int down = warp / 2 * kWarpStretches;  // first of the warp's stretches
  const uint32_t across = (warp % 2 * TILES * 8 + g) * kRowBytes + q * 16;  // its first row of x
  const int64_t my_row = first + down * kStretchRows + g;
  // Scales of the next step, asked for a step ahead.
  uint32_t next_scales[kStepBlocks * kWarpStretches * 2];
  const auto read_scales = [&](int step) {
#pragma unroll
    for (int i = 0; i < kStepBlocks * kWarpStretches * 2; ++i) {
      const int inside = i / (kWarpStretches * 2), s = i / 2 % kWarpStretches;
      next_scales[i] =
          scale_of.load(my_row + s * kStretchRows + i % 2 * 8, step * kStepBlocks + inside);
    }
  };
  if constexpr (GROUPED) read_scales(0);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kManyStages - 2>();
    __syncthreads();
    read_table(step + kManyStages - 1);
    read_x(step + kManyStages - 1);
    copy_async_commit();
    const uint32_t table_from =
        table_ring + step / kStretchSteps % kManyStages * kManyStretchBytes + down * kStretchBytes;
    const uint32_t x_from = x_ring + step % kManyStages * kStepBytes<TILES> + across;
    float scales[kStepBlocks][kWarpStretches][2];
    if constexpr (GROUPED) {
#pragma unroll
      for (int i = 0; i < kStepBlocks * kWarpStretches * 2; ++i) {
        const int inside = i / (kWarpStretches * 2), s = i / 2 % kWarpStretches;
        scales[inside][s][i % 2] = scale_of.value(next_scales[i]);
      }
      read_scales(step + 1);
    }
#pragma unroll
    for (int inside = 0; inside < kStepBlocks; ++inside) {
      const int block = step % kStretchSteps * kStepBlocks + inside;
      uint4 words[TILES];
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
        words[t] = load_shared_16(x_from + (inside * kRows + t * 8) * kRowBytes);
      }
#pragma unroll
      for (int s = 0; s < kWarpStretches; ++s) {
        Operand<BITS> rows;
        rows.load_alone(table_from + s * kStretchBytes, block, lane);

#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          if constexpr (GROUPED) {
            float part[4] = {};
            multiply<OPERAND>(part, rows.step[0], words[t].x, words[t].y);
            multiply<OPERAND>(part, rows.step[1], words[t].z, words[t].w);
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[s][t][i] += part[i] * scales[inside][s][i / 2];
          } else {
            multiply<OPERAND>(sums[s][t], rows.step[0], words[t].x, words[t].y);
            multiply<OPERAND>(sums[s][t], rows.step[1], words[t].z, words[t].w);
          }
        }
      }
    }
  }
  release_dependents();

  // All of them are on their way at once.
  float factors[TILES][2];
  const int64_t my_x = group * kRows + warp % 2 * TILES * 8 + 2 * q;
#pragma unroll
  for (int i = 0; i < TILES * 2; ++i) {
    const int64_t row = my_x + i / 2 * 8 + i % 2;
    factors[i / 2][i % 2] = row < o.rows ? __ldcg(p.factors + row) : 0.0f;
  }
  uint32_t row_scales[kWarpStretches * 2];
  if (BITS != 16 && !GROUPED) {
#pragma unroll
    for (int i = 0; i < kWarpStretches * 2; ++i) {
      row_scales[i] = scale_of.load(my_row + i / 2 * kStretchRows + i % 2 * 8, 0);
    }
  }
#pragma unroll
  for (int s = 0; s < kWarpStretches; ++s) {
    float row_scale[2] = {1.0f, 1.0f};
    if (BITS != 16 && !GROUPED) {
      row_scale[0] = scale_of.value(row_scales[2 * s]);
      row_scale[1] = scale_of.value(row_scales[2 * s + 1]);
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = my_x + t * 8 + i % 2;
        const int64_t place = my_row + s * kStretchRows + i / 2 * 8;
        if (row >= o.rows || place >= o.table.rows) continue;
        const float value = sums[s][t][i] * row_scale[i / 2] * factors[t][i % 2];
        o.logits[row * o.logits_stride + place] = soften(value, o.soft_cap);
      }
    }
  }
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_MANY_CUH
