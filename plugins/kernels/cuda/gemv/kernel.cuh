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
// The chain of instructions from the wait to the last store is what a small layer costs, some six
// cycles each: whatever does not need the activations stands before the wait (`keep` holds it
// there), and nothing is shared between warps until the sums are. Only matrices wider than all
// warps together (MANY) take their columns in several phases.

#ifndef NQ_CUDA_GEMV_KERNEL_CUH
#define NQ_CUDA_GEMV_KERNEL_CUH

#include "cuda/gemv/tile.cuh"

namespace nq_cuda {

// What the last step of one output needs. Outputs past the matrix, where the next half reads a
// padded row, have the scale 0.
struct Finish {
  float scale, bias, residual;
  int64_t place;
  bool wanted, valid;
};

template <int ROWS>
__device__ __forceinline__ Finish plan_finish(const GemvStage& stage, const GemvPart& part,
                                              int first_row, int item, int items) {
  Finish finish = {0.0f, 0.0f, 0.0f, 0, false, false};
  const int row = item % ROWS, out_row = first_row + item / ROWS;
  finish.wanted = item < items && row < stage.batch && out_row < part.padded_rows;
  finish.valid = finish.wanted && out_row < part.rows;
  finish.place = row * part.out_stride + out_row;
  if (finish.valid) {
    finish.scale = 1.0f;
    if (part.out_scale != nullptr) {
      finish.scale = load_value(part.out_scale, out_row, stage.scale_type);
    }
    if (part.bias != nullptr) finish.bias = load_value(part.bias, out_row, stage.scale_type);
  }
  return finish;
}

template <int ROWS, int KPW, bool BITS, Source SOURCE, bool MANY>
__global__ void __launch_bounds__(kGemvWarps * 32, ROWS* KPW <= 2 ? 2 : 1)
    gemv_stage(const __grid_constant__ GemvStage stage) {
  using Shape = GemvShape<ROWS, KPW>;
  using Tile = TileSums<ROWS, BITS>;
  constexpr int kQuads = BITS ? 1 : 4;  // 16-byte pieces of a fragment, for a lane
  extern __shared__ uint4 shared[];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  keep(lane), keep(warp), keep(warps);

  int index = 0;
  while (index + 1 < stage.count &&
         static_cast<int>(blockIdx.x) >= stage.parts[index + 1].first_block) {
    ++index;
  }
  const GemvPart& part = stage.parts[index];
  int first_tile = (blockIdx.x - part.first_block) * stage.tiles_per_block;
  int tiles = min(stage.tiles_per_block, part.row_tiles - first_tile);
  int per_pass = stage.tiles_per_pass, phases = MANY ? (stage.slices + warps - 1) / warps : 1;
  keep(first_tile), keep(tiles), keep(per_pass), keep(phases);

  GemvRing<KPW> ring;
  ring.begin = ring.slot = shared_address(shared) + warp * GemvRing<KPW>::kBytes + lane * 16;
  ring.policy = read_once_policy();
  ring.row_step = part.column_tiles * 32;
  uint32_t scratch =
      shared_address(shared) + warps * GemvRing<KPW>::kBytes + warp * Shape::kScratchBytes;
  uint32_t norms = shared_address(shared) + warps * Shape::kWarpBytes;
  uint32_t sums = norms + Shape::kNormBytes;
  uint32_t my_sums = sums + (lane >> 2) * (ROWS * Shape::kSumBytes) + warp * 4;
  keep(scratch), keep(norms), keep(sums), keep(my_sums);

  // One phase's weights are asked for in the order of their use, whatever the passes; with several
  // phases, each pass starts anew.
  auto start = [&](int pass, int phase) {
    const int column = (phase * warps + warp) * KPW;
    ring.columns = min(KPW, part.column_tiles - column);
    ring.left = MANY ? min(per_pass, tiles - pass) : tiles;
    ring.ahead = part.tiles +
                 (static_cast<int64_t>(first_tile + pass) * part.column_tiles + column) * 32 + lane;
    ring.fill();
  };
  start(0, 0);
  // What the ring has no room for waits in the level-2 cache.
  if (lane == 0) {
#pragma unroll 1
    for (int tile = GemvRing<KPW>::kUnits + warp; tile < tiles; tile += warps) {
      prefetch_stretch(
          part.tiles + static_cast<int64_t>(first_tile + tile) * part.column_tiles * 32,
          part.column_tiles * 512);
    }
  }

  Finish first = plan_finish<ROWS>(stage, part, first_tile * 16, threadIdx.x,
                                   min(per_pass, tiles) * 16 * ROWS);
  float factors[KPW][8];
  if (SOURCE == Source::kInput) {
    load_factors<KPW>(stage, part, warp * KPW * 256 + lane * 8, factors);
  }
  SliceReader<KPW, SOURCE> reader(part, 0, warp * KPW * 256 + lane * 8);
  Dealer dealer(lane);
  int q = lane & 3, sign = q == 3 ? -512 : 512;
  keep(q), keep(sign);
  const void* residual = first.valid ? part.residual : nullptr;
  keep(residual);
  wait_for_predecessors();
  // Released any earlier, later kernels' first steps would take issue slots from this one's chain.
  release_dependents();

  uint4 planes[Tile::kPlanes][KPW][kQuads];
  float scales[ROWS];
  int totals[ROWS];
  auto get_slice = [&](int phase) {
    float square[ROWS];
    if constexpr (SOURCE == Source::kFragments) {
      read_fragments<ROWS, KPW, BITS>(stage, part, phase * warps + warp, lane, planes, scales,
                                      totals, square);
    } else {
      // One row, converted here.
      float values[KPW][8];
      square[0] = 0.0f;
      if (MANY && phase > 0) {
        const int column = (phase * warps + warp) * KPW * 256 + lane * 8;
        if (SOURCE == Source::kInput) load_factors<KPW>(stage, part, column, factors);
        reader = SliceReader<KPW, SOURCE>(part, 0, column);
      }
      reader.read(stage, part, factors, values, &square[0]);
      if (phase == 0 && residual != nullptr) {
        first.residual = load_value(residual, first.place, stage.out_type);
      }
      __syncwarp();
      const SliceFacts facts = convert_slice<KPW, BITS>(values, scratch, dealer);
      __syncwarp();
      scales[0] = facts.scale;
      totals[0] = facts.total;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
#pragma unroll
        for (int i = 0; i < kQuads; ++i) {
          planes[0][k][i] = make_uint4(0, 0, 0, 0);
          if (BITS || lane < 8) {
            planes[0][k][i] =
                load_shared_16(scratch + (k * 32 + (BITS ? lane : i * 8 + lane)) * 16);
          }
        }
      }
      if (SOURCE == Source::kInput && stage.input == NQ_INPUT_RMS_NORM) {
        square[0] = warp_sum(square[0]);
      }
    }
    if (SOURCE != Source::kMiddle && stage.input == NQ_INPUT_RMS_NORM && lane == 0) {
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        const uint32_t norm = norms + (row * kGemvWarps + warp) * 4;
        store_shared(norm, phase == 0 ? square[row] : load_shared(norm) + square[row]);
      }
    }
  };
  if (!MANY) get_slice(0);
  if (SOURCE == Source::kFragments && residual != nullptr) {
    first.residual = load_value(residual, first.place, stage.out_type);
  }

#pragma unroll 1
  for (int pass = 0; pass < tiles; pass += per_pass) {
    const int in_pass = min(per_pass, tiles - pass);
#pragma unroll 1
    for (int phase = 0; phase < phases; ++phase) {
      if (MANY) {
        if (pass + phase > 0) start(pass, phase);
        get_slice(phase);
      }
      uint32_t to = my_sums;
      uint4 a[KPW];
      Tile now = {};
      ring.take(a);
      multiply<ROWS, KPW, BITS>(a, planes, now);
      ring.fetch();
#pragma unroll 1
      for (int tile = 1; tile < in_pass; ++tile) {
        // With few accumulators, the next tile is multiplied before this one's sums are folded.
        if constexpr (ROWS == 1) {
          Tile next = {};
          ring.take(a);
          multiply<ROWS, KPW, BITS>(a, planes, next);
          ring.fetch();
          fold<ROWS, BITS>(now, scales, totals, q, sign, to, MANY && phase > 0);
          now = next;
        } else {
          fold<ROWS, BITS>(now, scales, totals, q, sign, to, MANY && phase > 0);
          now = {};
          ring.take(a);
          multiply<ROWS, KPW, BITS>(a, planes, now);
          ring.fetch();
        }
        to += 16 * ROWS * Shape::kSumBytes;
      }
      fold<ROWS, BITS>(now, scales, totals, q, sign, to, MANY && phase > 0);
    }
    __syncthreads();
#pragma unroll 1
    for (int item = threadIdx.x; item < in_pass * 16 * ROWS; item += blockDim.x) {
      float value = add_warps(sums + item * Shape::kSumBytes, warps);
      if (SOURCE != Source::kMiddle && stage.input == NQ_INPUT_RMS_NORM) {
        const float square = add_warps(norms + item % ROWS * (kGemvWarps * 4), warps);
        value *= rsqrtf(square / static_cast<float>(part.columns) + stage.norm_eps);
      }
      value = value * first.scale + first.bias + first.residual;
      if (first.wanted) store_value(part.out, first.place, stage.out_type, value);
      // Only where a block has more outputs than threads.
      const int next = item + blockDim.x;
      if (next < in_pass * 16 * ROWS) {
        first = plan_finish<ROWS>(stage, part, (first_tile + pass) * 16, next, in_pass * 16 * ROWS);
        if (first.valid && part.residual != nullptr) {
          first.residual = load_value(part.residual, first.place, stage.out_type);
        }
      }
    }
    if (pass + per_pass < tiles) {
      const int next_pass = pass + per_pass;
      first = plan_finish<ROWS>(stage, part, (first_tile + next_pass) * 16, threadIdx.x,
                                min(per_pass, tiles - next_pass) * 16 * ROWS);
      if (first.valid && part.residual != nullptr) {
        first.residual = load_value(part.residual, first.place, stage.out_type);
      }
      __syncthreads();
    }
  }
}

// Converts slices for other launches: a warp for each column tile, KPW of them for a slice.
template <int KPW, bool BITS, Source SOURCE>
__global__ void __launch_bounds__(kConvertWarps * 32)
    gemv_convert(const __grid_constant__ GemvStage stage) {
  __shared__ uint4 scratch[kConvertWarps][32];
  __shared__ uint32_t largest_of[kConvertWarps];
  __shared__ float squares_of[kConvertWarps];
  __shared__ int total_of[kConvertWarps];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, leader = warp / KPW * KPW;
  const int tile = blockIdx.x * kConvertWarps + warp, row = blockIdx.y;
  const GemvPart& part = stage.parts[blockIdx.z];
  const int column = tile * 256 + lane * 8;
  float factors[1][8], values[1][8], squares = 0.0f;
  if (SOURCE == Source::kInput) load_factors<1>(stage, part, column, factors);
  SliceReader<1, SOURCE> reader(part, row, column);
  Dealer dealer(lane);
  wait_for_predecessors();
  release_dependents();
  reader.read(stage, part, factors, values, &squares);
  uint32_t largest = largest_magnitude<1>(values);
  if (SOURCE == Source::kInput) squares = warp_sum(squares);
  if (lane == 0) largest_of[warp] = largest, squares_of[warp] = squares;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < KPW; ++k) largest = max(largest, largest_of[leader + k]);
  const float bound = __uint_as_float(largest);
  int total = 0;
  deal_slice<1, BITS>(values, bound, shared_address(scratch[warp]), dealer, &total);
  total = warp_sum(total);
  if (lane == 0) total_of[warp] = total;
  __syncthreads();
  if (tile < part.column_tiles) {
    part.fragments[(static_cast<int64_t>(row) * part.column_tiles + tile) * 32 + lane] =
        scratch[warp][lane];
  }
  // A group's narrower parts have slices without columns: their facts are zeros.
  const int slice = tile / KPW;
  if (warp == leader && lane == 0 && slice < stage.slices) {
    SliceFacts facts = {scale_of(bound), 0, 0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      facts.total += total_of[leader + k];
      facts.squares += squares_of[leader + k];
    }
    part.facts[row * stage.slices + slice] = facts;
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_KERNEL_CUH
