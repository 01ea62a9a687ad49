// SPDX-License-Identifier: Apache-2.0
//
// Tables with NEON, which every aarch64 processor has: 16 floats are four registers.

#include <arm_neon.h>

#include "cpu/table/product.h"

namespace {

struct FourNeon {
  static constexpr int kSingleRows = 2;
  static constexpr int kTableRows = 1;
  static constexpr int kVectors = 3;
  struct Floats {
    float32x4_t v[4];
  };

  static Floats zero() { return scalar(0.0f); }
  static Floats scalar(float value) {
    const float32x4_t all = vdupq_n_f32(value);
    return {{all, all, all, all}};
  }
  static Floats load(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
  }
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
  }
  static Floats scaled(const Floats& a, float b, Floats c) {
    for (int i = 0; i < 4; ++i) c.v[i] = vfmaq_n_f32(c.v[i], a.v[i], b);
    return c;
  }
  static float sum(const Floats& value) {
    return vaddvq_f32(
        vaddq_f32(vaddq_f32(value.v[0], value.v[1]), vaddq_f32(value.v[2], value.v[3])));
  }
  static Floats widened(int8x16_t codes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(codes));
    const int16x8_t high = vmovl_s8(vget_high_s8(codes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
             vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
  }
  static Floats codes8(const int8_t* from) { return widened(vld1q_s8(from)); }
  static void codes4(const int8_t* from, Floats* low, Floats* high) {
    const int8x16_t codes = vld1q_s8(from);
    *low = widened(vshrq_n_s8(vshlq_n_s8(codes, 4), 4));
    *high = widened(vshrq_n_s8(codes, 4));
  }
};

}  // namespace

const NqTableIsa kTableNeon = {TableProduct<FourNeon, 8>::run, TableProduct<FourNeon, 4>::run};
