// SPDX-License-Identifier: Apache-2.0
//
// AArch64 Advanced SIMD kernels; every ARMv8-A processor has what they use.

#include <arm_neon.h>

#include "cpu/attend.h"
#include "cpu/convert_rows.h"
#include "cpu/isa.h"
#include "cpu/panel.h"

namespace {

struct Neon {
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;
  using Floats = float32x4_t;

  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats value) { vst1q_f32(to, value); }
  static Floats fma(float a, Floats b, Floats c) { return vfmaq_n_f32(c, b, a); }
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    const Floats row0 = load(rows[0] + column), row1 = load(rows[1] + column);
    const Floats row2 = load(rows[2] + column), row3 = load(rows[3] + column);
    const float64x2_t low01 = pairs(vzip1q_f32(row0, row1));
    const float64x2_t low23 = pairs(vzip1q_f32(row2, row3));
    const float64x2_t high01 = pairs(vzip2q_f32(row0, row1));
    const float64x2_t high23 = pairs(vzip2q_f32(row2, row3));
    out[0] = vreinterpretq_f32_f64(vzip1q_f64(low01, low23));
    out[1] = vreinterpretq_f32_f64(vzip2q_f64(low01, low23));
    out[2] = vreinterpretq_f32_f64(vzip1q_f64(high01, high23));
    out[3] = vreinterpretq_f32_f64(vzip2q_f64(high01, high23));
  }
  static float64x2_t pairs(Floats values) { return vreinterpretq_f64_f32(values); }
  static Floats widen_half(const uint16_t* from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
  }
  static Floats widen_bfloat(const uint16_t* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
  }
  static void narrow_half(Floats value, uint16_t* to) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(value)));
  }
};

}  // namespace

const NqIsa kIsaNeon = {ConvertRows<Neon>::to_float, ConvertRows<Neon>::from_float,
                        Attend<Neon, Panel<Neon>, ConvertRows<Neon>::to_float>::run};
