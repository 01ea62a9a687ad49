// SPDX-License-Identifier: Apache-2.0
//
// One half of a layer for a few rows of activations. Both halves of all projections of a group are
// launches of it.
//
// A block owns some row tiles and all columns; each of its warps owns a slice of KPW column tiles.
// A warp asks for its first weights and all its constants, then waits for the kernel before, gets
// its slice of the activations as fixed-point fragments into registers, and multiplies its tiles as
// they arrive, with sum(B x) = sum(x) - 2 sum over set bits of x, exact in integers. The slices'
// sums, each with its own scale, are added in a fixed order.
//
// The chain from the kernel before to the last store is what a small layer costs: constants are in
// registers before the wait, and nothing is shared between warps until the sums are.

#ifndef NQ_CUDA_GEMV_STAGE_CUH
#define NQ_CUDA_GEMV_STAGE_CUH

#include "gemv_convert.cuh"

namespace nq_cuda {

// Shared memory of a block: each warp's ring of weights, its scratch and its sums of squares, then
// the sums of all warps, those of one output next to each other.
template <int ROWS, int KPW>
struct GemvShape {
  static constexpr int kUnits = KPW == 1 ? 10 : KPW == 2 ? 5 : KPW == 4 ? 3 : 2;  // in flight
  static constexpr int kRingBytes = kUnits * KPW * 512;
  static constexpr int kScratchBytes = KPW * kFragmentWords * 4;
  static constexpr int kNormBytes = ROWS * 4;
  static constexpr int kSumStride = kGemvWarps + 4;  // floats; no bank conflicts, 16-byte reads

  static int shared_bytes(int warps, int tiles_per_pass) {
    return warps * (kRingBytes + kScratchBytes) + kGemvWarps * kNormBytes +
           tiles_per_pass * 16 * ROWS * kSumStride * 4;
  }
};

// The sum of one float of each warp, kept 16 bytes aligned, in a fixed order.
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

// What the last step of one output needs, asked for early.
struct Finish {
  float scale, bias, residual;
};

template <int ROWS, int KPW, bool BITS, Source SOURCE>
__global__ void __launch_bounds__(kGemvWarps * 32, ROWS* KPW <= 2 ? 2 : 1)
    gemv_stage(const __grid_constant__ GemvStage stage) {
  using Shape = GemvShape<ROWS, KPW>;
  extern __shared__ uint4 shared[];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  keep(lane), keep(warp), keep(warps);

  int index = 0;
  while (index + 1 < stage.count &&
         static_cast<int>(blockIdx.x) >= stage.parts[index + 1].first_block) {
    ++index;
  }
  GemvPart part = stage.parts[index];
  keep(part.in), keep(part.out), keep(part.residual), keep(part.fragments), keep(part.facts);
  keep(part.rows), keep(part.columns), keep(part.column_tiles), keep(part.padded_rows);
  const int first_tile = (blockIdx.x - part.first_block) * stage.tiles_per_block;
  const int tiles = min(stage.tiles_per_block, part.row_tiles - first_tile);
  int per_pass = stage.tiles_per_pass, batch = stage.batch, slices = stage.slices;
  keep(per_pass), keep(batch), keep(slices);
  int phases = slices > warps ? (slices + warps - 1) / warps : 1;
  keep(phases);

  uint32_t ring = shared_address(shared) + warp * Shape::kRingBytes + lane * 16;
  uint32_t scratch =
      shared_address(shared) + warps * Shape::kRingBytes + warp * Shape::kScratchBytes;
  uint32_t norms = shared_address(shared) + warps * (Shape::kRingBytes + Shape::kScratchBytes);
  uint32_t sums = norms + kGemvWarps * Shape::kNormBytes;
  keep(ring), keep(scratch), keep(norms), keep(sums);

  // A unit of weights is this warp's column tiles of one row tile. One phase's are asked for in the
  // order of their use, whatever the passes; with several phases, each pass starts anew.
  const uint64_t policy = read_once_policy();
  int units_left = 0, columns_here = 0;
  uint32_t slot = ring;  // the oldest unit, and the next one's place
  const uint4* ahead = nullptr;
  const int row_step = part.column_tiles * 32;
  auto fetch = [&]() {
    if (units_left > 0) {
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        if (k < columns_here) copy_async_16(slot + k * 512, ahead + k * 32, policy);
      }
      ahead += row_step;
      --units_left;
    }
    copy_async_commit();
    slot += KPW * 512;
    if (slot == ring + Shape::kRingBytes) slot = ring;
  };
  auto start = [&](int pass, int phase) {
    const int column = (phase * warps + warp) * KPW;
    columns_here = min(KPW, part.column_tiles - column);
    units_left = phases == 1 ? tiles - pass : min(per_pass, tiles - pass);
    ahead = part.tiles +
            (static_cast<int64_t>(first_tile + pass) * part.column_tiles + column) * 32 + lane;
#pragma unroll 1
    for (int unit = 0; unit < Shape::kUnits; ++unit) fetch();
  };
  start(0, 0);
  // What the ring has no room for waits in the level-2 cache.
  if (lane == 0) {
#pragma unroll 1
    for (int tile = Shape::kUnits + warp; tile < tiles; tile += warps) {
      prefetch_stretch(
          part.tiles + (static_cast<int64_t>(first_tile + tile) * part.column_tiles) * 32,
          part.column_tiles * 512);
    }
  }

  // Output `item` of a pass is row item % ROWS of the activations, row item / ROWS of the tiles.
  auto ask = [&](int pass, int item, bool constants) {
    Finish finish = {1.0f, 0.0f, 0.0f};
    const int row = item % ROWS, out_row = (first_tile + pass) * 16 + item / ROWS;
    if (item < per_pass * 16 * ROWS && out_row < part.rows && row < batch) {
      if (constants) {
        if (part.out_scale != nullptr) {
          finish.scale = load_value(part.out_scale, out_row, stage.scale_type);
        }
        if (part.bias != nullptr) finish.bias = load_value(part.bias, out_row, stage.scale_type);
      } else if (part.residual != nullptr) {
        finish.residual =
            load_value(part.residual, row * part.out_stride + out_row, stage.out_type);
      }
    }
    return finish;
  };
  Finish first = ask(0, threadIdx.x, true);
  float factors[KPW][8];
  if (SOURCE == Source::kInput) {
    load_factors<KPW>(stage, part, warp * KPW * 256 + lane * 8, factors);
  }
  // Released any earlier, later kernels' first steps would take issue slots from this one's chain.
  wait_for_predecessors();
  release_dependents();
  if (SOURCE != Source::kInput) first.residual = ask(0, threadIdx.x, false).residual;

  constexpr int kPlanes = BITS ? ROWS : (ROWS > 4 ? 2 : 1);  // fragments of a column tile
  constexpr int kQuads = BITS ? 1 : 4;                       // 16-byte pieces of one, for a lane
  uint4 planes[kPlanes][KPW][kQuads];
  struct Sums {
    int of[kPlanes][BITS ? 2 : 1][4];
  };
  float scales[ROWS];
  int totals[ROWS];
  auto get_slice = [&](int phase) {
    const int slice = phase * warps + warp;
    const bool present = slice < slices;
    if (SOURCE == Source::kFragments) {
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        const int row = BITS ? p : p * 4 + lane / 8;
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          const int column = slice * KPW + k;
          const uint4* from =
              part.fragments + (static_cast<int64_t>(row) * part.column_tiles + column) * 32;
#pragma unroll
          for (int i = 0; i < kQuads; ++i) {
            planes[p][k][i] = make_uint4(0, 0, 0, 0);
            if (row < batch && column < part.column_tiles) {
              planes[p][k][i] = __ldcg(from + (BITS ? lane : i * 8 + lane % 8));
            }
          }
        }
      }
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        uint4 facts = make_uint4(0, 0, 0, 0);
        if (present && row < batch) {
          facts = __ldcg(reinterpret_cast<const uint4*>(part.facts + row * slices + slice));
        }
        scales[row] = __uint_as_float(facts.x);
        totals[row] = static_cast<int>(facts.y);
        if (lane == 0) {
          const float square = __uint_as_float(facts.z);
          const uint32_t norm = norms + (row * kGemvWarps + warp) * 4;
          store_shared(norm, phase == 0 ? square : load_shared(norm) + square);
        }
      }
      return;
    }
    // One row, converted here.
    float values[KPW][8], squares = 0.0f;
    const int first_column = slice * KPW * 256 + lane * 8;
    if (SOURCE == Source::kInput && phase > 0) {
      load_factors<KPW>(stage, part, first_column, factors);
    }
    load_slice<KPW, SOURCE>(stage, part, 0, first_column, factors, values, &squares);
    __syncwarp();
    const SliceFacts facts = convert_slice<KPW, BITS>(values, scratch, lane);
    __syncwarp();
    scales[0] = facts.scale;
    totals[0] = facts.total;
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        planes[0][k][i] = make_uint4(0, 0, 0, 0);
        if (BITS || lane < 8)
          planes[0][k][i] = load_shared_16(scratch + (k * 32 + (BITS ? lane : i * 8 + lane)) * 16);
      }
    }
    if (SOURCE == Source::kInput && stage.input == NQ_INPUT_RMS_NORM) {
      squares = warp_sum(squares);
      if (lane == 0) {
        const uint32_t norm = norms + warp * 4;
        store_shared(norm, phase == 0 ? squares : load_shared(norm) + squares);
      }
    }
  };

  int q = lane & 3;
  uint32_t my_sum = sums + (lane >> 2) * (ROWS * Shape::kSumStride * 4) + warp * 4;
  keep(q), keep(my_sum);
#pragma unroll 1
  for (int pass = 0; pass < tiles; pass += per_pass) {
    const int in_pass = min(per_pass, tiles - pass);
#pragma unroll 1
    for (int phase = 0; phase < phases; ++phase) {
      if (pass == 0 || phases > 1) {
        if (pass + phase > 0) start(pass, phase);
        get_slice(phase);
      }
      uint32_t to = my_sum;
      auto multiply = [&](Sums& d) {
        copy_async_wait<Shape::kUnits - 1>();
        uint4 a[KPW];
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          a[k] = make_uint4(0, 0, 0, 0);
          if (k < columns_here) a[k] = load_shared_16(slot + k * 512);
        }
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
#pragma unroll
          for (int k = 0; k < KPW; ++k) {
            if constexpr (BITS) {
              const uint4& b = planes[p][k][0];
              mma_bits(d.of[p][0], a[k], b.x, b.y);
              mma_bits(d.of[p][1], a[k], b.z, b.w);
            } else {
#pragma unroll
              for (int s = 0; s < 8; ++s) {
                const uint4& b = planes[p][k][s / 2];
                mma_bytes(d.of[p][0], (a[k].x >> s) & 0x01010101u, (a[k].y >> s) & 0x01010101u,
                          (a[k].z >> s) & 0x01010101u, (a[k].w >> s) & 0x01010101u,
                          s % 2 ? b.z : b.x, s % 2 ? b.w : b.y);
              }
            }
          }
        }
        fetch();
      };
      auto finish_tile = [&](const Sums& d) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          int upper, lower;
          if constexpr (BITS) {
            // This lane has planes 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q; plane 15 is the sign's.
            const int* low = d.of[row][0];
            const int* high = d.of[row][1];
            const int sign = q == 3 ? -512 : 512;
            upper = (low[0] + 2 * low[1] + 256 * high[0] + sign * high[1]) << (2 * q);
            lower = (low[2] + 2 * low[3] + 256 * high[2] + sign * high[3]) << (2 * q);
            upper += __shfl_xor_sync(0xffffffffu, upper, 1);
            lower += __shfl_xor_sync(0xffffffffu, lower, 1);
            upper += __shfl_xor_sync(0xffffffffu, upper, 2);
            lower += __shfl_xor_sync(0xffffffffu, lower, 2);
          } else {
            // This lane has both digits of row q of each fragment.
            const int* sum = d.of[row / 4][0];
            upper = sum[0] + 256 * sum[1];
            lower = sum[2] + 256 * sum[3];
          }
          if (q == (BITS ? 0 : row % 4)) {
            const float above = scales[row] * static_cast<float>(totals[row] - 2 * upper);
            const float below = scales[row] * static_cast<float>(totals[row] - 2 * lower);
            const uint32_t upper_sum = to + row * (Shape::kSumStride * 4);
            const uint32_t lower_sum = upper_sum + 8 * ROWS * Shape::kSumStride * 4;
            if (phase == 0) {
              store_shared(upper_sum, above);
              store_shared(lower_sum, below);
            } else {
              store_shared(upper_sum, load_shared(upper_sum) + above);
              store_shared(lower_sum, load_shared(lower_sum) + below);
            }
          }
        }
        to += 16 * ROWS * Shape::kSumStride * 4;
      };
      if constexpr (ROWS == 1) {
        // The next tile is multiplied before this one's sums are folded.
        Sums now = {};
        multiply(now);
#pragma unroll 1
        for (int tile = 1; tile < in_pass; ++tile) {
          Sums next = {};
          multiply(next);
          finish_tile(now);
          now = next;
        }
        finish_tile(now);
      } else {
#pragma unroll 1
        for (int tile = 0; tile < in_pass; ++tile) {
          Sums now = {};
          multiply(now);
          finish_tile(now);
        }
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int item = threadIdx.x; item < in_pass * 16 * ROWS; item += blockDim.x) {
      Finish finish = first;
      if (pass > 0 || item >= static_cast<int>(blockDim.x)) {
        finish = ask(pass, item, true);
        finish.residual = ask(pass, item, false).residual;
      }
      const int row = item % ROWS, out_row = (first_tile + pass) * 16 + item / ROWS;
      float value = add_warps(sums + item * (Shape::kSumStride * 4), warps);
      if (SOURCE != Source::kMiddle && stage.input == NQ_INPUT_RMS_NORM) {
        const float square = add_warps(norms + row * (kGemvWarps * 4), warps);
        value *= rsqrtf(square / static_cast<float>(part.columns) + stage.norm_eps);
      }
      value = value * finish.scale + finish.bias + finish.residual;
      // Rows past the matrix are written as zeros where the next half reads them.
      if (out_row >= part.rows) value = 0.0f;
      if (row < batch && out_row < part.padded_rows) {
        store_value(part.out, row * part.out_stride + out_row, stage.out_type, value);
      }
    }
    if (pass + per_pass < tiles) __syncthreads();
  }
}

// Converts slices for launches of several rows: one warp for each row and slice.
template <int KPW, bool BITS, Source SOURCE>
__global__ void __launch_bounds__(128) gemv_convert(const __grid_constant__ GemvStage stage) {
  __shared__ uint4 scratch[4][KPW * 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int slice = blockIdx.x * 4 + warp, row = blockIdx.y;
  const GemvPart& part = stage.parts[blockIdx.z];
  const int first_column = slice * KPW * 256 + lane * 8;
  float factors[KPW][8], values[KPW][8], squares = 0.0f;
  if (SOURCE == Source::kInput) load_factors<KPW>(stage, part, first_column, factors);
  release_dependents();
  wait_for_predecessors();
  if (slice * KPW >= part.column_tiles) {
    // A group's narrower parts have slices without columns.
    if (slice < stage.slices && lane == 0) part.facts[row * stage.slices + slice] = {};
    return;
  }
  load_slice<KPW, SOURCE>(stage, part, row, first_column, factors, values, &squares);
  SliceFacts facts = convert_slice<KPW, BITS>(values, shared_address(scratch[warp]), lane);
  __syncwarp();
  if (SOURCE == Source::kInput) facts.squares = warp_sum(squares);
  if (lane == 0) part.facts[row * stage.slices + slice] = facts;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    const int column = slice * KPW + k;
    if (column < part.column_tiles) {
      part.fragments[(static_cast<int64_t>(row) * part.column_tiles + column) * 32 + lane] =
          scratch[warp][k * 32 + lane];
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_STAGE_CUH
