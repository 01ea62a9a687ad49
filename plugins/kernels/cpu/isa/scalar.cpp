// SPDX-License-Identifier: Apache-2.0
//
// The plain C++ kernels: the reference for the others and the last resort on any processor.

#include "cpu/attend.h"
#include "cpu/convert.h"
#include "cpu/isa.h"
#include "cpu/panel.h"

namespace {

// Four floats at a time, which any compiler maps on whatever the baseline offers.
struct Plain {
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 4;
  struct Floats {
    float v[kLanes];
  };

  static Floats zero() { return Floats{}; }
  static Floats load(const float* from) {
    Floats out;
    memcpy(out.v, from, sizeof out.v);
    return out;
  }
  static void store(float* to, const Floats& value) { memcpy(to, value.v, sizeof value.v); }
  static Floats fma(float a, const Floats& b, Floats c) {
    for (int i = 0; i < kLanes; ++i) c.v[i] += a * b.v[i];
    return c;
  }
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    for (int c = 0; c < 4; ++c) {
      for (int i = 0; i < kLanes; ++i) out[c].v[i] = rows[i][column + c];
    }
  }
};

void to_float(const void* src, nq_type type, int64_t count, float* dst) {
  const uint16_t* narrow = static_cast<const uint16_t*>(src);
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
  } else if (type == NQ_FLOAT16) {
    for (int64_t i = 0; i < count; ++i) dst[i] = half_to_float(narrow[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) dst[i] = bfloat_to_float(narrow[i]);
  }
}

void from_float(const float* src, nq_type type, int64_t count, void* dst) {
  uint16_t* narrow = static_cast<uint16_t*>(dst);
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
  } else if (type == NQ_FLOAT16) {
    for (int64_t i = 0; i < count; ++i) narrow[i] = float_to_half(src[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) narrow[i] = float_to_bfloat(src[i]);
  }
}

}  // namespace

const NqIsa kIsaScalar = {to_float, from_float, Attend<Plain, Panel<Plain>, to_float>::run};
