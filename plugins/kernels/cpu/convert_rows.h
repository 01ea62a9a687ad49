// SPDX-License-Identifier: Apache-2.0
//
// Rows of 16-bit floats to and from float32, written once over a vector type that has no masks: the
// tail goes value by value.
//
// V has what panel.h asks for, and: widen_half and widen_bfloat, which read kLanes values, and
// narrow_half, which rounds kLanes floats to nearest even and writes them.

#ifndef NQ_CPU_CONVERT_ROWS_H
#define NQ_CPU_CONVERT_ROWS_H

#include <string.h>

#include "cpu/convert.h"
#include "cpu/isa.h"

namespace {

template <class V>
struct ConvertRows {
  // See NqIsa::to_float.
  static void to_float(const void* src, nq_type type, int64_t count, float* dst) {
    if (type == NQ_FLOAT32) {
      memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    const uint16_t* narrow = static_cast<const uint16_t*>(src);
    int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) {
      V::store(dst + i,
               type == NQ_FLOAT16 ? V::widen_half(narrow + i) : V::widen_bfloat(narrow + i));
    }
    for (; i < count; ++i) {
      dst[i] = type == NQ_FLOAT16 ? half_to_float(narrow[i]) : bfloat_to_float(narrow[i]);
    }
  }

  // See NqIsa::from_float.
  static void from_float(const float* src, nq_type type, int64_t count, void* dst) {
    if (type == NQ_FLOAT32) {
      memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    uint16_t* narrow = static_cast<uint16_t*>(dst);
    int64_t i = 0;
    if (type == NQ_FLOAT16) {
      for (; i + V::kLanes <= count; i += V::kLanes) V::narrow_half(V::load(src + i), narrow + i);
      for (; i < count; ++i) narrow[i] = float_to_half(src[i]);
    } else {
      for (; i < count; ++i) narrow[i] = float_to_bfloat(src[i]);
    }
  }
};

}  // namespace

#endif  // NQ_CPU_CONVERT_ROWS_H
