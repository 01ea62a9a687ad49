// SPDX-License-Identifier: Apache-2.0
//
// Reading and writing the three floating types, and the input functions. The type is a run-time
// value that is the same for all threads, so the branch is free.

#ifndef NQ_CUDA_VALUES_CUH
#define NQ_CUDA_VALUES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "nq_cuda.h"

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

// Two neighbours of a 16-bit type.
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

__device__ __forceinline__ uint32_t pack_pair(float low, float high, nq_type type) {
  if (type == NQ_BFLOAT16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Eight neighbours of a 16-bit type.
__device__ __forceinline__ void unpack_eight(const uint4& raw, nq_type type, float (&values)[8]) {
  unpack_pair(raw.x, type, &values[0], &values[1]);
  unpack_pair(raw.y, type, &values[2], &values[3]);
  unpack_pair(raw.z, type, &values[4], &values[5]);
  unpack_pair(raw.w, type, &values[6], &values[7]);
}

__device__ __forceinline__ void unpack_eight(const uint4& first, const uint4& second,
                                             float (&values)[8]) {
  values[0] = __uint_as_float(first.x), values[1] = __uint_as_float(first.y);
  values[2] = __uint_as_float(first.z), values[3] = __uint_as_float(first.w);
  values[4] = __uint_as_float(second.x), values[5] = __uint_as_float(second.y);
  values[6] = __uint_as_float(second.z), values[7] = __uint_as_float(second.w);
}

// silu(x) = x s(x), and the tanh form of gelu, 0.5 x (1 + tanh(u)) with
// u = sqrt(2 / pi) (x + 0.044715 x^3), is x s(2 u), where s is the logistic function.
__device__ __forceinline__ float activation(float x, bool gelu) {
  const float u = gelu ? 1.5957691216057308f * (x + 0.044715f * x * x * x) : x;
  return __fdividef(x, 1.0f + __expf(-u));
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_VALUES_CUH
