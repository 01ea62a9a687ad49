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

// Shared memory of a block: each warp's ring of weights, its scratch, and its sums.
template <int ROWS, int KPW>
struct GemvShape {
  static constexpr int kUnits = KPW == 1 ? 10 : KPW == 2 ? 5 : KPW == 4 ? 3 : 2;  // in flight
  static constexpr int kRingBytes = kUnits * KPW * 512;
  static constexpr int kScratchBytes = KPW * kFragmentWords * 4;
  static constexpr int kFactsBytes = ROWS * 4;

  static int shared_bytes(int warps, int tiles_per_pass) {
    return warps * (kRingBytes + kScratchBytes + kFactsBytes + tiles_per_pass * 16 * ROWS * 4);
  }
};

// What the last step of one output needs, asked for early.
struct Finish {
  float scale, bias, residual;
};

template <int ROWS, int KPW, bool BITS, Source SOURCE>
__global__ void __launch_bounds__(kGemvWarps * 32, ROWS* KPW <= 2 ? 2 : 1)
    gemv_stage(const __grid_constant__ GemvStage stage) {
  using Shape = GemvShape<ROWS, KPW>;
  extern __shared__ uint4 shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;

  int index = 0;
  while (index + 1 < stage.count &&
         static_cast<int>(blockIdx.x) >= stage.parts[index + 1].first_block) {
    ++index;
  }
  const GemvPart& part = stage.parts[index];
  const int first_tile = (blockIdx.x - part.first_block) * stage.tiles_per_block;
  const int tiles = min(stage.tiles_per_block, part.row_tiles - first_tile);
  const int per_pass = stage.tiles_per_pass;
  const int phases = (stage.slices + warps - 1) / warps;

  uint4* const ring = shared + warp * (Shape::kRingBytes / 16) + lane;
  uint32_t* const scratch = reinterpret_cast<uint32_t*>(shared + warps * (Shape::kRingBytes / 16)) +
                            warp * (Shape::kScratchBytes / 4);
  float* const norms =
      reinterpret_cast<float*>(shared) + warps * ((Shape::kRingBytes + Shape::kScratchBytes) / 4);
  float* const sums = norms + warps * ROWS;

  // A unit of weights is this warp's column tiles of one row tile. They are asked for in the order
  // of their use: passes, phases, row tiles.
  int ahead_pass = 0, ahead_phase = 0, ahead_tile = 0, slot_in = 0;
  const uint4* ahead =
      part.tiles + (static_cast<int64_t>(first_tile) * part.column_tiles + warp * KPW) * 32 + lane;
  auto fetch = [&]() {
    if (ahead_pass < tiles) {
      const int column = (ahead_phase * warps + warp) * KPW;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        if (column + k < part.column_tiles) {
          copy_async_16(ring + (slot_in * KPW + k) * 32, ahead + k * 32);
        }
      }
      ahead += part.column_tiles * 32;
      if (++ahead_tile == min(per_pass, tiles - ahead_pass)) {
        ahead_tile = 0;
        if (++ahead_phase == phases) {
          ahead_phase = 0;
          ahead_pass += per_pass;
        }
        ahead = part.tiles +
                (static_cast<int64_t>(first_tile + ahead_pass) * part.column_tiles +
                 (ahead_phase * warps + warp) * KPW) *
                    32 +
                lane;
      }
    }
    copy_async_commit();
    slot_in = slot_in + 1 == Shape::kUnits ? 0 : slot_in + 1;
  };
#pragma unroll 1
  for (int unit = 0; unit < Shape::kUnits; ++unit) fetch();

  // Output `item` of a pass is row item % ROWS of the activations, row item / ROWS of the tiles.
  auto ask = [&](int pass, int item, bool constants) {
    Finish finish = {1.0f, 0.0f, 0.0f};
    const int row = item % ROWS, out_row = (first_tile + pass) * 16 + item / ROWS;
    if (item < per_pass * 16 * ROWS && out_row < part.rows && row < stage.batch) {
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
  release_dependents();
  wait_for_predecessors();
  if (SOURCE != Source::kInput) first.residual = ask(0, threadIdx.x, false).residual;

  constexpr int kPlanes = BITS ? ROWS : (ROWS > 4 ? 2 : 1);  // fragments of a column tile
  constexpr int kQuads = BITS ? 1 : 4;                       // 16-byte pieces of one, for a lane
  uint4 planes[kPlanes][KPW][kQuads];
  float scales[ROWS];
  int totals[ROWS];
  auto get_slice = [&](int phase) {
    const int slice = phase * warps + warp;
    const bool present = slice < stage.slices;
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
            if (row < stage.batch && column < part.column_tiles) {
              planes[p][k][i] = __ldcg(from + (BITS ? lane : i * 8 + lane % 8));
            }
          }
        }
      }
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        uint4 facts = make_uint4(0, 0, 0, 0);
        if (present && row < stage.batch) {
          facts = __ldcg(reinterpret_cast<const uint4*>(part.facts + row * stage.slices + slice));
        }
        scales[row] = __uint_as_float(facts.x);
        totals[row] = static_cast<int>(facts.y);
        if (lane == 0) {
          const float square = __uint_as_float(facts.z);
          norms[warp * ROWS + row] = phase == 0 ? square : norms[warp * ROWS + row] + square;
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
    const uint4* from = reinterpret_cast<const uint4*>(scratch);
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        planes[0][k][i] = make_uint4(0, 0, 0, 0);
        if (BITS || lane < 8) planes[0][k][i] = from[k * 32 + (BITS ? lane : i * 8 + lane)];
      }
    }
    if (SOURCE == Source::kInput && stage.input == NQ_INPUT_RMS_NORM) {
      squares = warp_sum(squares);
      if (lane == 0) norms[warp] = phase == 0 ? squares : norms[warp] + squares;
    }
  };

  int slot_out = 0;
#pragma unroll 1
  for (int pass = 0; pass < tiles; pass += per_pass) {
    const int in_pass = min(per_pass, tiles - pass);
#pragma unroll 1
    for (int phase = 0; phase < phases; ++phase) {
      if (pass == 0 || phases > 1) get_slice(phase);
      const int column = (phase * warps + warp) * KPW;
#pragma unroll 1
      for (int tile = 0; tile < in_pass; ++tile) {
        copy_async_wait<Shape::kUnits - 1>();
        uint4 a[KPW];
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          a[k] = make_uint4(0, 0, 0, 0);
          if (column + k < part.column_tiles) a[k] = ring[(slot_out * KPW + k) * 32];
        }
        slot_out = slot_out + 1 == Shape::kUnits ? 0 : slot_out + 1;
        float* const to = sums + ((warp * per_pass + tile) * 16 + (lane >> 2)) * ROWS;
        const int q = lane & 3;
        int d[kPlanes][BITS ? 2 : 1][4] = {};
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) {
#pragma unroll
          for (int k = 0; k < KPW; ++k) {
            if constexpr (BITS) {
              const uint4& b = planes[p][k][0];
              mma_bits(d[p][0], a[k], b.x, b.y);
              mma_bits(d[p][1], a[k], b.z, b.w);
            } else {
#pragma unroll
              for (int s = 0; s < 8; ++s) {
                const uint4& b = planes[p][k][s / 2];
                mma_bytes(d[p][0], (a[k].x >> s) & 0x01010101u, (a[k].y >> s) & 0x01010101u,
                          (a[k].z >> s) & 0x01010101u, (a[k].w >> s) & 0x01010101u,
                          s % 2 ? b.z : b.x, s % 2 ? b.w : b.y);
              }
            }
          }
        }
        fetch();
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
          int upper, lower;
          if constexpr (BITS) {
            // This lane has planes 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q; plane 15 is the sign's.
            const int* low = d[row][0];
            const int* high = d[row][1];
            const int sign = q == 3 ? -512 : 512;
            upper = (low[0] + 2 * low[1] + 256 * high[0] + sign * high[1]) << (2 * q);
            lower = (low[2] + 2 * low[3] + 256 * high[2] + sign * high[3]) << (2 * q);
            upper += __shfl_xor_sync(0xffffffffu, upper, 1);
            lower += __shfl_xor_sync(0xffffffffu, lower, 1);
            upper += __shfl_xor_sync(0xffffffffu, upper, 2);
            lower += __shfl_xor_sync(0xffffffffu, lower, 2);
          } else {
            // This lane has both digits of row q of each fragment.
            const int* sum = d[row / 4][0];
            upper = sum[0] + 256 * sum[1];
            lower = sum[2] + 256 * sum[3];
          }
          if (q == (BITS ? 0 : row % 4)) {
            const float above = scales[row] * static_cast<float>(totals[row] - 2 * upper);
            const float below = scales[row] * static_cast<float>(totals[row] - 2 * lower);
            to[row] = phase == 0 ? above : to[row] + above;
            to[8 * ROWS + row] = phase == 0 ? below : to[8 * ROWS + row] + below;
          }
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
      float value = 0.0f;
#pragma unroll 8
      for (int w = 0; w < warps; ++w) value += sums[w * per_pass * 16 * ROWS + item];
      if (SOURCE != Source::kMiddle && stage.input == NQ_INPUT_RMS_NORM) {
        float square = 0.0f;
#pragma unroll 8
        for (int w = 0; w < warps; ++w) square += norms[w * ROWS + row];
        value *= rsqrtf(square / static_cast<float>(part.columns) + stage.norm_eps);
      }
      value = value * finish.scale + finish.bias + finish.residual;
      // Rows past the matrix are written as zeros where the next half reads them.
      if (out_row >= part.rows) value = 0.0f;
      if (row < stage.batch && out_row < part.padded_rows) {
        store_value(part.out, row * part.out_stride + out_row, stage.out_type, value);
      }
    }
    if (pass + per_pass < tiles) __syncthreads();
  }
}

// Converts slices for launches of several rows: one warp for each row and slice.
template <int KPW, bool BITS, Source SOURCE>
__global__ void __launch_bounds__(128) gemv_convert(const __grid_constant__ GemvStage stage) {
  __shared__ uint32_t scratch[4][KPW * kFragmentWords];
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
  SliceFacts facts = convert_slice<KPW, BITS>(values, scratch[warp], lane);
  __syncwarp();
  if (SOURCE == Source::kInput) facts.squares = warp_sum(squares);
  if (lane == 0) part.facts[row * stage.slices + slice] = facts;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    const int column = slice * KPW + k;
    if (column < part.column_tiles) {
      part.fragments[(static_cast<int64_t>(row) * part.column_tiles + column) * 32 + lane] =
          reinterpret_cast<const uint4*>(scratch[warp])[k * 32 + lane];
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_STAGE_CUH
