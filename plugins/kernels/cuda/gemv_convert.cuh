// SPDX-License-Identifier: Apache-2.0
//
// A warp turns its slice, KPW column tiles of one row of activations, into fixed-point fragments
// (fixed_point.cuh) with one scale. Lane l has columns 8 l to 8 l + 7 of each tile.

#ifndef NQ_CUDA_GEMV_CONVERT_CUH
#define NQ_CUDA_GEMV_CONVERT_CUH

#include "fixed_point.cuh"
#include "gemv_types.cuh"
#include "ptx.cuh"
#include "values.cuh"

namespace nq_cuda {

// Eight 16-bit values from `column` (a multiple of 8) on, as they are, 0 from `count` on; `from` is
// aligned to 16 bytes. The cut end of a row is pushed in value by value: short code, rarely run.
__device__ __forceinline__ uint4 load_raw(const void* from, int column, int count) {
  const uint16_t* source = static_cast<const uint16_t*>(from) + column;
  if (column + 8 <= count) return *reinterpret_cast<const uint4*>(source);
  uint4 raw = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int i = count - column - 1; i >= 0; --i) {
    raw.w = __funnelshift_l(raw.z, raw.w, 16);
    raw.z = __funnelshift_l(raw.y, raw.z, 16);
    raw.y = __funnelshift_l(raw.x, raw.y, 16);
    raw.x = raw.x << 16 | source[i];
  }
  return raw;
}

// The same for a float32 vector of any length.
__device__ __forceinline__ void load_floats(const void* from, int column, int count,
                                            float (&values)[8]) {
  const float* source = static_cast<const float*>(from) + column;
  if (column + 8 <= count) {
    unpack_eight(reinterpret_cast<const uint4*>(source)[0],
                 reinterpret_cast<const uint4*>(source)[1], values);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = 0.0f;
#pragma unroll 1
  for (int i = count - column - 1; i >= 0; --i) {
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
      load_floats(part.in_scale, column, part.columns, factors[k]);
    } else {
      unpack_eight(load_raw(part.in_scale, column, part.columns), stage.scale_type, factors[k]);
    }
  }
  if (stage.input == NQ_INPUT_RMS_NORM) {
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      float weight[8];
      unpack_eight(load_raw(stage.norm_weight, first_column + k * 256, part.columns), stage.in_type,
                   weight);
#pragma unroll
      for (int i = 0; i < 8; ++i) factors[k][i] *= weight[i];
    }
  }
}

// The slice's values as the sign matrix sees them.
template <int KPW, Source SOURCE>
__device__ __forceinline__ void load_slice(const GemvStage& stage, const GemvPart& part, int row,
                                           int first_column, const float (&factors)[KPW][8],
                                           float (&values)[KPW][8], float* squares) {
  const int64_t begin = static_cast<int64_t>(row) * part.in_stride;
  if (SOURCE == Source::kMiddle) {
    // The first half has padded the row with zeros to a multiple of eight.
    const uint4* source =
        reinterpret_cast<const uint4*>(static_cast<const float*>(part.in) + begin + first_column);
#pragma unroll
    for (int k = 0; k < KPW; ++k) {
      uint4 first = make_uint4(0, 0, 0, 0), second = first;
      if (first_column + k * 256 < part.columns) {
        first = __ldcg(source + k * 64);
        second = __ldcg(source + k * 64 + 1);
      }
      unpack_eight(first, second, values[k]);
    }
    return;
  }
  const uint16_t* source = static_cast<const uint16_t*>(part.in) + begin;
  const bool gated = stage.input == NQ_INPUT_SILU || stage.input == NQ_INPUT_GELU;
  uint4 raw[KPW], up[KPW];
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    const int column = first_column + k * 256;
    raw[k] = load_raw(source, column, part.columns);
    if (gated) up[k] = load_raw(source + part.columns, column, part.columns);
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

// Writes the fragments of the slice to the shared-memory address `fragments` (KPW times 512 bytes,
// read by all lanes after a
// __syncwarp) and returns its facts, without the squares, in all lanes.
template <int KPW, bool BITS>
__device__ __forceinline__ SliceFacts convert_slice(const float (&values)[KPW][8],
                                                    uint32_t fragments, int lane) {
  uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      largest = max(largest, __float_as_uint(values[k][i]) & 0x7fffffffu);
    }
  }
  // Magnitudes order as their bits do; a NaN is the largest of all and stays.
  const float bound = __uint_as_float(warp_max(largest));
  // Where the quotient would overflow, the slice is so small that it counts as zero.
  const float inverse = bound > 1e-33f ? __fdividef(kFixedMax, bound) : 0.0f;
  int total = 0;
#pragma unroll
  for (int k = 0; k < KPW; ++k) {
    uint32_t fixed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      fixed[i] = __float_as_uint(fmaf(values[k][i], inverse, kRoundMagic));
      total += static_cast<int>(fixed[i] - kRoundMagicBits);
    }
    deal<BITS>(fixed, fragments + k * kFragmentWords * 4, lane);
  }
  return {bound * (1.0f / kFixedMax), warp_sum(total), 0.0f, 0.0f};
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_CONVERT_CUH
