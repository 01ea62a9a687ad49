// SPDX-License-Identifier: Apache-2.0
//
// Turns slices, KPW column tiles of one row of activations, into fixed-point fragments
// (fixed_point.cuh) with one scale. Lane l of a warp has columns 8 l to 8 l + 7 of each tile.

#ifndef NQ_CUDA_GEMV_CONVERT_CUH
#define NQ_CUDA_GEMV_CONVERT_CUH

#include "cuda/gemv/fixed_point.cuh"
#include "cuda/gemv/types.cuh"
#include "cuda/ptx.cuh"
#include "cuda/values.cuh"

namespace nq_cuda {

// Eight 16-bit values from a multiple of 16 bytes on, as they are, of which `count` exist; the
// others are 0. The cut end of a row is pushed in value by value: short code, rarely run.
__device__ __forceinline__ uint4 load_raw(const void* from, int count) {
  const uint16_t* source = static_cast<const uint16_t*>(from);
  if (count >= 8) return *reinterpret_cast<const uint4*>(source);
  uint4 raw = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int i = count - 1; i >= 0; --i) {
    raw.w = __funnelshift_l(raw.z, raw.w, 16);
    raw.z = __funnelshift_l(raw.y, raw.z, 16);
    raw.y = __funnelshift_l(raw.x, raw.y, 16);
    raw.x = raw.x << 16 | source[i];
  }
  return raw;
}

// The same for a float32 vector of any length.
__device__ __forceinline__ void load_floats(const float* source, int count, float (&values)[8]) {
  if (count >= 8) {
    unpack_eight(reinterpret_cast<const uint4*>(source)[0],
                 reinterpret_cast<const uint4*>(source)[1], values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = 0.0f;
#pragma unroll 1
  for (int i = count - 1; i >= 0; --i) {
#pragma unroll
    for (int place = 7; place > 0; --place) values[place] = values[place - 1];
    values[0] = source[i];
  }
}

// The constants that multiply a slice: in_scale, and the norm's weight where there is one.
template <int KPW>
__device__ __forceinline__ void load_factors(const GemvStage& stage, const GemvPart& part,
                                             int first_column, float (&factors)[KPW][8]) {
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    const int column = first_column + k * 256;
    if (stage.scale_type == NQ_FLOAT32) {
      load_floats(static_cast<const float*>(part.in_scale) + column, part.columns - column,
                  factors[k]);
    } else {
      const uint16_t* source = static_cast<const uint16_t*>(part.in_scale) + column;
      unpack_eight(load_raw(source, part.columns - column), stage.scale_type, factors[k]);
    }
  }
  if (stage.input == NQ_INPUT_RMS_NORM) {
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      float weight[8];
      const int column = first_column + k * 256;
      load_floats(stage.norm_weight + column, part.columns - column, weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) factors[k][i] *= weight[i];
    }
  }
}

// One row's slice, as the sign matrix sees it. Made before the activations are there, so that the
// addresses are ready when they are.
template <int KPW, Source SOURCE>
struct SliceReader {
  const void* from;
  int column, columns;

  __device__ __forceinline__ SliceReader(const GemvPart& part, int row, int first_column)
      : column(first_column), columns(part.columns) {
    const int64_t begin = static_cast<int64_t>(row) * part.in_stride + first_column;
    from = SOURCE == Source::kMiddle
               ? static_cast<const void*>(static_cast<const float*>(part.in) + begin)
               : static_cast<const void*>(static_cast<const uint16_t*>(part.in) + begin);
    keep(from), keep(column), keep(columns);
  }

  __device__ __forceinline__ void read(const GemvStage& stage, const GemvPart& part,
                                       const float (&factors)[KPW][8], float (&values)[KPW][8],
                                       float* squares) const {
    if constexpr (SOURCE == Source::kMiddle) {
      // The first half has padded the row with zeros to a multiple of eight.
      const uint4* source = static_cast<const uint4*>(from);
      uint4 raw[KPW][2];
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        raw[k][0] = raw[k][1] = make_uint4(0, 0, 0, 0);
        if (column + k * 256 < columns) {
          raw[k][0] = __ldcg(source + k * 64);
          raw[k][1] = __ldcg(source + k * 64 + 1);
        }
      }
#pragma unroll
      for (int k = 0; k < KPW; ++k) unpack_eight(raw[k][0], raw[k][1], values[k]);
    } else {
      const uint16_t* source = static_cast<const uint16_t*>(from);
      const bool gated = stage.input == NQ_INPUT_SILU || stage.input == NQ_INPUT_GELU;
      uint4 raw[KPW], up[KPW];
#pragma unroll
      for (int k = 0; k < KPW; ++k) raw[k] = load_raw(source + k * 256, columns - column - k * 256);
      if (gated) {
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
          up[k] = load_raw(source + part.columns + k * 256, columns - column - k * 256);
        }
      }
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
        unpack_eight(raw[k], stage.in_type, values[k]);
        if (gated) {
          float other[8];
          unpack_eight(up[k], stage.in_type, other);
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            values[k][i] = other[i] * activation(values[k][i], stage.input == NQ_INPUT_GELU);
          }
        }
      }
      if (stage.input == NQ_INPUT_RMS_NORM) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < KPW; ++k) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sum += values[k][i] * values[k][i];
        }
        *squares = sum;
      }
#pragma unroll
      for (int k = 0; k < KPW; ++k) {
#pragma unroll
        for (int i = 0; i < 8; ++i) values[k][i] *= factors[k][i];
      }
    }
  }
};

// Fixed-point values with `bound` as the largest magnitude, dealt out as fragments to the
// shared-memory address `fragments` (KPW times 512 bytes, read by all lanes after a __syncwarp);
// adds this lane's sum of them to `total`.
template <int KPW, bool BITS>
__device__ __forceinline__ void deal_slice(const float (&values)[KPW][8], float bound,
                                           uint32_t fragments, const Dealer& dealer, int* total) {
  // Where the quotient would overflow, the slice is so small that it counts as zero.
  const float inverse = bound > 1e-33f ? kFixedMax * reciprocal(bound) : 0.0f;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    uint32_t fixed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      fixed[i] = __float_as_uint(fmaf(values[k][i], inverse, kRoundMagic));
      *total += static_cast<int>(fixed[i] - kRoundMagicBits);
    }
    deal<BITS>(fixed, fragments + k * kFragmentWords * 4, dealer);
  }
}

// The bits of a slice's largest magnitude, in all lanes: they order as magnitudes do, and a NaN is
// the largest of all and stays.
template <int KPW>
__device__ __forceinline__ uint32_t largest_magnitude(const float (&values)[KPW][8]) {
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      largest = max(largest, __float_as_uint(values[k][i]) & 0x7fffffffu);
    }
  }
  return warp_max(largest);
}

// What one step of the fixed-point values is worth.
__device__ __forceinline__ float scale_of(float bound) { return bound * (1.0f / kFixedMax); }

// A warp's own slice; returns its facts, without the squares, in all lanes.
template <int KPW, bool BITS>
__device__ __forceinline__ SliceFacts convert_slice(const float (&values)[KPW][8],
                                                    uint32_t fragments, const Dealer& dealer) {
  const float bound = __uint_as_float(largest_magnitude<KPW>(values));
  int total = 0;
  deal_slice<KPW, BITS>(values, bound, fragments, dealer, &total);
  return {scale_of(bound), warp_sum(total), 0.0f, 0.0f};
}

// Fragments, scales, totals and sums of squares of a slice that an earlier launch converted.
template <int ROWS, int KPW, bool BITS>
__device__ __forceinline__ void read_fragments(
    const GemvStage& stage, const GemvPart& part, int slice, int lane,
    uint4 (&planes)[BITS ? ROWS : (ROWS > 4 ? 2 : 1)][KPW][BITS ? 1 : 4], float (&scales)[ROWS],
    int (&totals)[ROWS], float (&squares)[ROWS]) {
  constexpr int kPlanes = BITS ? ROWS : (ROWS > 4 ? 2 : 1);
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
    const int row = BITS ? p : p * 4 + lane / 8;
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      const int column = slice * KPW + k;
      const uint4* from =
          part.fragments + (static_cast<int64_t>(row) * part.column_tiles + column) * 32;
#pragma unroll
      for (int i = 0; i < (BITS ? 1 : 4); ++i) {
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
    if (slice < stage.slices && row < stage.batch) {
      facts = __ldcg(reinterpret_cast<const uint4*>(part.facts + row * stage.slices + slice));
    }
    scales[row] = __uint_as_float(facts.x);
    totals[row] = static_cast<int>(facts.y);
    squares[row] = __uint_as_float(facts.z);
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_CONVERT_CUH
