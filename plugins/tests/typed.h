// SPDX-License-Identifier: Apache-2.0
//
// Elements of an array whose floating type is known at run time only.

#ifndef NQ_TESTS_TYPED_H
#define NQ_TESTS_TYPED_H

#include "../kernels/cpu/convert.h"
#include "../kernels/nq_kernels.h"

namespace {

inline int64_t bytes_of(nq_type type) { return type == NQ_FLOAT32 ? 4 : 2; }

inline double get(const void* array, nq_type type, int64_t i) {
  if (type == NQ_FLOAT32) return static_cast<const float*>(array)[i];
  const uint16_t bits = static_cast<const uint16_t*>(array)[i];
  return type == NQ_FLOAT16 ? half_to_float(bits) : bfloat_to_float(bits);
}

inline void put(void* array, nq_type type, int64_t i, float value) {
  if (type == NQ_FLOAT32) {
    static_cast<float*>(array)[i] = value;
  } else {
    static_cast<uint16_t*>(array)[i] =
        type == NQ_FLOAT16 ? float_to_half(value) : float_to_bfloat(value);
  }
}

}  // namespace

#endif  // NQ_TESTS_TYPED_H
