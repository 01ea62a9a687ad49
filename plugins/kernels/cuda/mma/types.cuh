// SPDX-License-Identifier: Apache-2.0
//
// What the warp-level tensor-core product passes to its kernels, and how its operands lie.
//
// y = x W^T with signs W = 1 - 2 b is computed as sum(x) - 2 sum_{b=1} x. Activations are 16-bit
// fixed point with one scale per row and 256 columns, x = scale (256 high + low) with balanced
// digits, so every sum inside a group is an exact integer; groups are added in float32.
//
// Digits ("planes") lie as the B fragments of mma.m16n8k32.s8 (PTX ISA, "Matrix fragments for
// mma.m16n8k32"), so that copies are plain and every shared-memory read is 16 bytes a lane. Their
// column order is the one in which bytes fall out of a tile of layout 1: k-step s of a group takes
// (word >> s) & 0x01010101 of each of a lane's four words, and those are columns s, s + 8, s + 16
// and s + 24 of the word. A fragment block is 8 rows x 256 columns x 1 plane = 2048 bytes:
//
//   block ((row / 8) k_tiles + k_tile) planes + plane, byte 512 chunk + 16 lane + 4 word + b with
//   lane = 4 (row mod 8) + q: column 128 (word & 1) + 32 q + 8 b + 2 chunk + (word >> 1).

#ifndef NQ_CUDA_MMA_TYPES_CUH
#define NQ_CUDA_MMA_TYPES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/internal.h"

namespace nq_cuda {
namespace mma {

constexpr int kTileColumns = NQ_CUDA_TILE_COLUMNS;
constexpr int kBlockBytes = 2048;
constexpr int kRowGroup = 8;
constexpr int kRowPad = 64;                 // rows of the planes are padded to the widest tile
constexpr float kTwoPlaneLimit = 32639.0f;  // 127 * 256 + 127
constexpr float kOnePlaneLimit = 127.0f;

// One matrix of activations on its way into planes.
struct PrepareLayer {
  const void* x;
  int64_t x_stride;
  int64_t columns;
  const void* scale_in;  // [columns] or null
  int8_t* planes;
  float* scale;  // [k_tiles][rows_padded], the fixed-point step
  float* sum;    // [k_tiles][rows_padded], sum of the group's values
  int k_tiles;
};

struct PrepareParams {
  PrepareLayer layer[NQ_CUDA_MAX_GROUP];
  nq_type x_type;
  nq_type scale_type;
  nq_input input;
  const float* norm_weight;
  float norm_eps;
  // Squares of x per [k_tile][rows_padded]: written when `input` is the norm, and read by the
  // second stage, whose values are all divided by the root mean square of their row.
  float* squares_out;
  const float* squares_in;
  int64_t norm_columns;
  int norm_tiles;
  int64_t rows;
  int64_t rows_padded;
  int planes;
  int max_k_tiles;
};

// One product of the launch: out[row][m] = row_scale[m] * (...) + bias[m] + residual[row][m].
struct ProductLayer {
  const uint4* tiles;
  const int8_t* planes;
  const float* scale;
  const float* sum;
  void* out;
  int64_t out_stride;
  int64_t out_columns;    // rows of the sign matrix
  const void* out_scale;  // [out_columns] or null
  const void* bias;       // likewise
  const void* residual;   // like out, or null
  int k_tiles;
  int first_tile;  // of this layer in the launch's list of output tiles
};

struct ProductParams {
  ProductLayer layer[NQ_CUDA_MAX_GROUP];
  int count;
  int row_tiles;
  int64_t rows;
  int64_t rows_padded;
  nq_type scale_type;
  nq_type out_type;
};

// `COUNT` values from `index` on as float32; those at or past `valid` are 0. `index` is a multiple
// of COUNT, but the array may begin anywhere (the second half of a gated input).
template <int COUNT>
__device__ __forceinline__ void load_values(const void* base, nq_type type, int64_t index,
                                            int64_t valid, float (&v)[COUNT]) {
  static_assert(COUNT == 4 || COUNT == 8, "vectors of 4 or 8");
  const char* address = static_cast<const char*>(base) + index * (type == NQ_FLOAT32 ? 4 : 2);
  const bool whole = valid >= COUNT;
  if (type == NQ_FLOAT32) {
    if (whole && reinterpret_cast<uintptr_t>(address) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < COUNT / 4; ++i) {
        const float4 part = reinterpret_cast<const float4*>(address)[i];
        v[4 * i] = part.x, v[4 * i + 1] = part.y, v[4 * i + 2] = part.z, v[4 * i + 3] = part.w;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      v[i] = i < valid ? reinterpret_cast<const float*>(address)[i] : 0.0f;
    }
    return;
  }
  uint32_t words[COUNT / 2];
  if (whole && reinterpret_cast<uintptr_t>(address) % (2 * COUNT) == 0) {
    if (COUNT == 8) {
      const uint4 part = *reinterpret_cast<const uint4*>(address);
      words[0] = part.x, words[1] = part.y;
      words[COUNT / 2 - 2] = part.z, words[COUNT / 2 - 1] = part.w;
    } else {
      const uint2 part = *reinterpret_cast<const uint2*>(address);
      words[0] = part.x, words[1] = part.y;
    }
  } else {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(address);
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      const uint32_t low = 2 * i < valid ? halves[2 * i] : 0;
      const uint32_t high = 2 * i + 1 < valid ? halves[2 * i + 1] : 0;
      words[i] = low | high << 16;
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT / 2; ++i) {
    if (type == NQ_BFLOAT16) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    } else {
      v[2 * i] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i])));
      v[2 * i + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[i] >> 16)));
    }
  }
}

__device__ __forceinline__ uint32_t as_bits(float value, nq_type type) {
  if (type == NQ_BFLOAT16) return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  return __half_as_ushort(__float2half_rn(value));
}

// The opposite for four values: stores those below `valid`. Whole vectors are aligned.
__device__ __forceinline__ void store_values(void* base, nq_type type, int64_t index, int64_t valid,
                                             const float (&v)[4]) {
  if (type == NQ_FLOAT32) {
    float* to = static_cast<float*>(base) + index;
    if (valid >= 4) {
      *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
      return;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i < valid) to[i] = v[i];
    }
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(base) + index;
  if (valid >= 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(as_bits(v[0], type) | as_bits(v[1], type) << 16,
                                               as_bits(v[2], type) | as_bits(v[3], type) << 16);
    return;
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (i < valid) to[i] = static_cast<uint16_t>(as_bits(v[i], type));
  }
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_TYPES_CUH
