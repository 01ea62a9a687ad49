// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing the three floating types, eight neighbours at a time, and the input
// functions. The type is a run-time value that is the same for all threads, so the branch is free.

#ifndef NQ_CUDA_VALUES_CUH
#define NQ_CUDA_VALUES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../nq_cuda.h"

namespace nq_cuda {

__device__ __forceinline__ float load_value(const void* from, int64_t index, nq_type type) {
  if (type == NQ_FLOAT16) return __half2float(static_cast<const __half*>(from)[index]);
  if (type == NQ_BFLOAT16) return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[index]);
  return static_cast<const float*>(from)[index];
}

__device__ __forceinline__ void store_value(void* to, int64_t index, nq_type type, float value) {
  if (type == NQ_FLOAT16) {
    static_cast<__half*>(to)[index] = __float2half_rn(value);
  } else if (type == NQ_BFLOAT16) {
    static_cast<__nv_bfloat16*>(to)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(to)[index] = value;
  }
}

__device__ __forceinline__ void unpack_pair(uint32_t pair, nq_type type, float* low, float* high) {
  if (type == NQ_BFLOAT16) {
    *low = __uint_as_float(pair << 16);
    *high = __uint_as_float(pair & 0xffff0000u);
  } else {
    const __half2 halves = *reinterpret_cast<const __half2*>(&pair);
    *low = __low2float(halves);
    *high = __high2float(halves);
  }
}

// Values `column` to `column + 7` of the row that begins at element `begin`; those from `count` on
// are 0. `vector` says that the row begins at a multiple of 16 bytes; `column` is a multiple of 8.
__device__ __forceinline__ void load_eight(const void* from, int64_t begin, int column, int count,
                                           nq_type type, bool vector, float (&values)[8]) {
  if (vector && column + 8 <= count) {
    if (type == NQ_FLOAT32) {
      const float4* source =
          reinterpret_cast<const float4*>(static_cast<const float*>(from) + begin + column);
      const float4 a = source[0], b = source[1];
      values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
      values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
    } else {
      const uint4 raw =
          *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from) + begin + column);
      unpack_pair(raw.x, type, &values[0], &values[1]);
      unpack_pair(raw.y, type, &values[2], &values[3]);
      unpack_pair(raw.z, type, &values[4], &values[5]);
      unpack_pair(raw.w, type, &values[6], &values[7]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = column + i < count ? load_value(from, begin + column + i, type) : 0.0f;
  }
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// The tanh form: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
__device__ __forceinline__ float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_VALUES_CUH
