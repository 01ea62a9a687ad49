// SPDX-License-Identifier: Apache-2.0
//
// Tables with NEON, which every aarch64 processor has: a block is four registers of 16-bit numbers.

#include <arm_neon.h>

#include "cpu/table/product.h"

namespace {

struct FourNeon {
  static constexpr int kVectors = 4;
  using Floats = float32x4_t;
  struct Words {
    int16x8_t v[4];
  };

  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Words widened(int8x16_t low, int8x16_t high) {
    return {{vmovl_s8(vget_low_s8(low)), vmovl_high_s8(low), vmovl_s8(vget_low_s8(high)),
             vmovl_high_s8(high)}};
  }
  static Words words8(const int8_t* from) { return widened(vld1q_s8(from), vld1q_s8(from + 16)); }
  static Words words4(const int8_t* from) {
    const int8x16_t codes = vld1q_s8(from);
    return widened(vshrq_n_s8(vshlq_n_s8(codes, 4), 4), vshrq_n_s8(codes, 4));
  }
  static Floats multiply(const Words& words, const int16_t* x, float weight, Floats c) {
    int32x4_t sums = vdupq_n_s32(0);
    for (int i = 0; i < 4; ++i) {
      const int16x8_t eight = vld1q_s16(x + 8 * i);
      sums = vmlal_s16(sums, vget_low_s16(words.v[i]), vget_low_s16(eight));
      sums = vmlal_high_s16(sums, words.v[i], eight);
    }
    return vfmaq_n_f32(c, vcvtq_f32_s32(sums), weight);
  }
  static float sum(Floats a, Floats b) { return vaddvq_f32(vaddq_f32(a, b)); }
};

}  // namespace

const NqTableIsa kTableNeon = {TableProduct<FourNeon, 8>::run, TableProduct<FourNeon, 4>::run};
