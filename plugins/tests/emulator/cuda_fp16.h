// SPDX-License-Identifier: Apache-2.0
//
// float16 as the emulated kernels use it; half.cpp does the rounding.

#ifndef NQ_EMULATOR_CUDA_FP16_H
#define NQ_EMULATOR_CUDA_FP16_H

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

float nq_emulated_half_to_float(uint16_t bits);
uint16_t nq_emulated_float_to_half(float value);

inline float __half2float(__half value) { return nq_emulated_half_to_float(value.bits); }
inline __half __float2half_rn(float value) { return {nq_emulated_float_to_half(value)}; }
inline float __low2float(const __half2& pair) { return __half2float(pair.x); }
inline float __high2float(const __half2& pair) { return __half2float(pair.y); }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(__half value) { return value.bits; }
inline __half2 __floats2half2_rn(float a, float b) {
  return {__float2half_rn(a), __float2half_rn(b)};
}

#endif  // NQ_EMULATOR_CUDA_FP16_H
