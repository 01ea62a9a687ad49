// SPDX-License-Identifier: Apache-2.0
//
// One half of a layer for a few rows of activations: out = out_scale * (B (in_scale * f(in))) with
// the sign matrix B in layout 1. Both halves of all projections of a group are launches of it.
//
// A block owns some row tiles and all columns. Each warp owns a slice of KPW column tiles: it asks
// for its weights first, then waits for the kernel before, turns its slice of the input into fixed
// point (fixed_point.cuh) in registers, and multiplies its tiles as they arrive, with
// sum(B x) = sum(x) - 2 sum over set bits of x, exact in integers. Nothing is shared between warps
// until their sums, each with its slice's scale, are added in a fixed order at the end.

#ifndef NQ_CUDA_GEMV_STAGE_CUH
#define NQ_CUDA_GEMV_STAGE_CUH

#include "fixed_point.cuh"
#include "ptx.cuh"
#include "values.cuh"

namespace nq_cuda {

constexpr int kGemvWarps = 16;  // most warps of a block

// One projection's half. All sizes are in elements unless they say tiles.
struct GemvPart {
  const uint4* tiles;
  const void* in;
  const void* in_scale;   // null: 1, and then no norm either
  const void* out_scale;  // null: 1
  const void* bias;       // null: 0
  const void* residual;   // null: 0
  void* out;
  int64_t in_stride, out_stride;
  int rows, columns;
  int row_tiles, column_tiles;
  int first_block;
};

struct GemvStage {
  GemvPart parts[NQ_CUDA_MAX_GROUP];
  int count;
  int batch;            // rows of activations, at most the kernel's ROWS
  int tiles_per_block;  // row tiles of a block
  int tiles_per_pass;   // row tiles between two reductions
  int input;            // nq_input
  nq_type in_type, scale_type, out_type;
  const void* norm_weight;
  float norm_eps;
  bool in_vector;  // rows of `in` begin at multiples of 16 bytes
};

// Shared memory of a block, in this order.
template <int ROWS, int KPW, bool BITS>
struct GemvShape {
  static constexpr int kUnits = KPW == 1 ? 10 : KPW == 2 ? 5 : KPW == 4 ? 3 : 2;  // in flight
  static constexpr int kRingBytes = kUnits * KPW * 512;                           // a warp
  static constexpr int kScratchBytes = kPlaneWords * 4 * (BITS ? 1 : ROWS);       // a warp
  static constexpr int kNormBytes = ROWS * 4;                                     // a warp
  static constexpr int kFragmentWords = BITS ? 4 : (ROWS > 4 ? 32 : 16);

  static int shared_bytes(int warps, int tiles_per_pass) {
    return warps * (kRingBytes + kScratchBytes + kNormBytes + tiles_per_pass * 16 * ROWS * 4);
  }
};

// A warp's walk over its weights: for each pass, for each phase of columns, for each row tile.
struct GemvWalk {
  int pass, phase, tile;
};

template <int ROWS, int KPW, bool BITS>
__global__ void __launch_bounds__(kGemvWarps * 32, ROWS* KPW <= 2 ? 2 : 1)
    gemv_stage(const __grid_constant__ GemvStage stage) {
  using Shape = GemvShape<ROWS, KPW, BITS>;
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
  const int phase_tiles = warps * KPW;
  const int phases = (part.column_tiles + phase_tiles - 1) / phase_tiles;
  const int slice = warp * KPW;

  uint4* ring = shared + warp * (Shape::kRingBytes / 16) + lane;
  uint32_t* scratch = reinterpret_cast<uint32_t*>(shared + warps * (Shape::kRingBytes / 16)) +
                      warp * (Shape::kScratchBytes / 4);
  float* norms =
      reinterpret_cast<float*>(shared) + warps * ((Shape::kRingBytes + Shape::kScratchBytes) / 4);
  float* sums = norms + warps * ROWS;

  // Weights: a unit is this warp's KPW tiles of one row tile.
  GemvWalk ahead = {0, 0, 0};
  int slot_in = 0;
  auto fetch = [&]() {
    const int pass_begin = ahead.pass * per_pass;
    if (pass_begin < tiles) {
      const int column = ahead.phase * phase_tiles + slice;
      const uint4* from =
          part.tiles +
          (static_cast<int64_t>(first_tile + pass_begin + ahead.tile) * part.column_tiles +
           column) *
              32 +
          lane;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        if (column + k < part.column_tiles) {
          copy_async_16(ring + (slot_in * KPW + k) * 32, from + k * 32);
        }
      }
      if (++ahead.tile == min(per_pass, tiles - pass_begin)) {
        ahead.tile = 0;
        if (++ahead.phase == phases) {
          ahead.phase = 0;
          ++ahead.pass;
        }
      }
    }
    copy_async_commit();
    slot_in = slot_in + 1 == Shape::kUnits ? 0 : slot_in + 1;
  };
#pragma unroll
  for (int unit = 0; unit < Shape::kUnits; ++unit) fetch();
  release_dependents();
  wait_for_predecessors();

  uint32_t planes[BITS ? ROWS : 1][KPW][Shape::kFragmentWords];
  float scales[ROWS];  // of this slice, per row
  int totals[ROWS];    // sum of the fixed-point values of this slice
  float squares[ROWS];
  for (int row = 0; row < ROWS; ++row) squares[row] = 0.0f;

  auto convert = [&](int phase) {
    // All loads first: they are as far away as anything on the chip.
    float values[ROWS][KPW][8];
    const int first_column = (phase * phase_tiles + slice) * 256 + lane * 8;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const int64_t begin = static_cast<int64_t>(row) * part.in_stride;
      const int present = row < stage.batch ? part.columns : 0;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        load_eight(part.in, begin, first_column + k * 256, present, stage.in_type, stage.in_vector,
                   values[row][k]);
      }
    }
    if (stage.input == NQ_INPUT_SILU || stage.input == NQ_INPUT_GELU) {
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        // The second half of a row is aligned only if the first is a multiple of eight long.
        const int64_t begin = static_cast<int64_t>(row) * part.in_stride + part.columns;
        const int present = row < stage.batch ? part.columns : 0;
        const bool vector = stage.in_vector && part.columns % 8 == 0;
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          float up[8];
          load_eight(part.in, begin, first_column + k * 256, present, stage.in_type, vector, up);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float gate = values[row][k][i];
            values[row][k][i] =
                up[i] * (stage.input == NQ_INPUT_SILU ? silu(gate) : gelu_tanh(gate));
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      const int column = first_column + k * 256;
      if (part.in_scale != nullptr) {
        float scale[8];
        load_eight(part.in_scale, 0, column, part.columns, stage.scale_type, true, scale);
        if (stage.input == NQ_INPUT_RMS_NORM) {
          float weight[8];
          load_eight(stage.norm_weight, 0, column, part.columns, stage.in_type, true, weight);
#pragma unroll
          for (int i = 0; i < 8; ++i) scale[i] *= weight[i];
#pragma unroll
          for (int row = 0; row < ROWS; ++row) {
#pragma unroll
            for (int i = 0; i < 8; ++i) squares[row] += values[row][k][i] * values[row][k][i];
          }
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
#pragma unroll
          for (int i = 0; i < 8; ++i) values[row][k][i] *= scale[i];
        }
      }
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          largest = max(largest, __float_as_uint(values[row][k][i]) & 0x7fffffffu);
        }
      }
      // Magnitudes order as their bits do; a NaN is the largest of all and stays.
      largest = warp_max(largest);
      const float bound = __uint_as_float(largest);
      const float inverse = bound > 0.0f ? kFixedMax / bound : 0.0f;
      // A quotient that overflowed would make zeros NaN: such tiny slices count as zero.
      const float factor = inverse <= 3.0e38f ? inverse : 0.0f;
      scales[row] = bound * (1.0f / kFixedMax);
      int total = 0;
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        uint32_t fixed[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          fixed[i] = __float_as_uint(fmaf(values[row][k][i], factor, kRoundMagic));
          total += static_cast<int>(fixed[i] - kRoundMagicBits);
        }
        if (BITS) {
          __syncwarp();
          deal_planes<true>(fixed, scratch, lane);
          __syncwarp();
          const int g = lane >> 2, q = lane & 3;
          planes[row][k][0] = scratch[plane_slot(g, q)];
          planes[row][k][1] = scratch[plane_slot(g, q + 4)];
          planes[row][k][2] = scratch[plane_slot(g + 8, q)];
          planes[row][k][3] = scratch[plane_slot(g + 8, q + 4)];
        } else {
          __syncwarp();
          deal_planes<false>(fixed, scratch, lane);
          __syncwarp();
          // Column 2 r + d of the fragment is digit d of row r; rows past four use a second one.
          const int g = lane >> 2, q = lane & 3;
          constexpr int kHalves = ROWS > 4 ? 2 : 1;
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            if (row / 4 == half && row % 4 == g / 2) {
#pragma unroll
              for (int s = 0; s < 8; ++s) {
                planes[0][k][half * 16 + 2 * s] = scratch[plane_slot((g & 1) * 8 + s, q)];
                planes[0][k][half * 16 + 2 * s + 1] = scratch[plane_slot((g & 1) * 8 + s, q + 4)];
              }
            }
          }
        }
      }
      totals[row] = warp_sum(total);
    }
  };

  if (!BITS) {
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
#pragma unroll
      for (int i = 0; i < Shape::kFragmentWords; ++i) planes[0][k][i] = 0;
    }
  }

  int slot_out = 0;
  for (int pass = 0; pass * per_pass < tiles; ++pass) {
    const int in_pass = min(per_pass, tiles - pass * per_pass);
    for (int phase = 0; phase < phases; ++phase) {
      if (pass == 0 || phases > 1) convert(phase);
      const int column = phase * phase_tiles + slice;
      for (int tile = 0; tile < in_pass; ++tile) {
        copy_async_wait<Shape::kUnits - 1>();
        uint4 a[KPW];
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          a[k] = make_uint4(0, 0, 0, 0);
          if (column + k < part.column_tiles) a[k] = ring[(slot_out * KPW + k) * 32];
        }
        slot_out = slot_out + 1 == Shape::kUnits ? 0 : slot_out + 1;
        float* to = sums + ((warp * per_pass + tile) * 16 + (lane >> 2)) * ROWS;
        const int q = lane & 3;
        if (BITS) {
#pragma unroll
          for (int row = 0; row < ROWS; ++row) {
            int low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = 0; k < KPW; ++k) {
              mma_bits(low, a[k], planes[row][k][0], planes[row][k][1]);
              mma_bits(high, a[k], planes[row][k][2], planes[row][k][3]);
            }
            // This lane has planes 2 q, 2 q + 1, 8 + 2 q, 9 + 2 q; plane 15 is the sign's.
            const int sign = q == 3 ? -1 : 1;
            int upper = (low[0] + 2 * low[1] + 256 * (high[0] + 2 * sign * high[1])) << (2 * q);
            int lower = (low[2] + 2 * low[3] + 256 * (high[2] + 2 * sign * high[3])) << (2 * q);
            upper += __shfl_xor_sync(0xffffffffu, upper, 1);
            lower += __shfl_xor_sync(0xffffffffu, lower, 1);
            upper += __shfl_xor_sync(0xffffffffu, upper, 2);
            lower += __shfl_xor_sync(0xffffffffu, lower, 2);
            if (q == 0) {
              const float above = scales[row] * static_cast<float>(totals[row] - 2 * upper);
              const float below = scales[row] * static_cast<float>(totals[row] - 2 * lower);
              to[row] = phase == 0 ? above : to[row] + above;
              to[8 * ROWS + row] = phase == 0 ? below : to[8 * ROWS + row] + below;
            }
          }
        } else {
          constexpr int kHalves = ROWS > 4 ? 2 : 1;
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            int sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = 0; k < KPW; ++k) {
#pragma unroll
              for (int s = 0; s < 8; ++s) {
                mma_bytes(sum, (a[k].x >> s) & 0x01010101u, (a[k].y >> s) & 0x01010101u,
                          (a[k].z >> s) & 0x01010101u, (a[k].w >> s) & 0x01010101u,
                          planes[0][k][half * 16 + 2 * s], planes[0][k][half * 16 + 2 * s + 1]);
              }
            }
            // This lane has both digits of row 4 half + q.
#pragma unroll
            for (int row = half * 4; row < ROWS && row < half * 4 + 4; ++row) {
              if (row % 4 != q) continue;
              const float above =
                  scales[row] * static_cast<float>(totals[row] - 2 * (sum[0] + 256 * sum[1]));
              const float below =
                  scales[row] * static_cast<float>(totals[row] - 2 * (sum[2] + 256 * sum[3]));
              to[row] = phase == 0 ? above : to[row] + above;
              to[8 * ROWS + row] = phase == 0 ? below : to[8 * ROWS + row] + below;
            }
          }
        }
        fetch();
      }
    }
    if (pass == 0 && stage.input == NQ_INPUT_RMS_NORM) {
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        const float square = warp_sum(squares[row]);
        if (lane == 0) norms[warp * ROWS + row] = square;
      }
    }
    __syncthreads();
    for (int item = threadIdx.x; item < in_pass * 16 * ROWS; item += blockDim.x) {
      const int row = item % ROWS, inside = item / ROWS;
      const int64_t out_row = static_cast<int64_t>(first_tile + pass * per_pass) * 16 + inside;
      if (row >= stage.batch || out_row >= part.rows) continue;
      float value = 0.0f;
      for (int w = 0; w < warps; ++w) value += sums[(w * per_pass * 16 + inside) * ROWS + row];
      if (stage.input == NQ_INPUT_RMS_NORM) {
        float square = 0.0f;
        for (int w = 0; w < warps; ++w) square += norms[w * ROWS + row];
        value *= rsqrtf(square / static_cast<float>(part.columns) + stage.norm_eps);
      }
      if (part.out_scale != nullptr) value *= load_value(part.out_scale, out_row, stage.scale_type);
      if (part.bias != nullptr) value += load_value(part.bias, out_row, stage.scale_type);
      const int64_t place = row * part.out_stride + out_row;
      if (part.residual != nullptr) value += load_value(part.residual, place, stage.out_type);
      store_value(part.out, place, stage.out_type, value);
    }
    if ((pass + 1) * per_pass < tiles) __syncthreads();
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_STAGE_CUH
