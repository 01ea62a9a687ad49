// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AArch64 Advanced SIMD: tables of bytes, 16 lookups an instruction.

#include <arm_neon.h>

#include "cpu/signs/byte_panel.h"

namespace {

struct OneTable {
  static constexpr int kTables = 1;
  using Floats = float32x4_t;

  static Floats quads(const float* x, int half, int part) {
    return vld1q_f32(x + part * 8 + half * 4);
  }
  template <int i>
  static Floats each(Floats q) {
    return vdupq_laneq_f32(q, i);
  }
  static Floats signed0(Floats a) { return vmulq_f32(a, signs(1, -1, 1, -1)); }
  static Floats signed1(Floats a, Floats b) { return vfmaq_f32(b, a, signs(1, 1, -1, -1)); }
  static Floats signs(float a, float b, float c, float d) {
    const float all[] = {a, b, c, d};
    return vld1q_f32(all);
  }
  static Floats scaled(Floats a, float b) { return vmulq_n_f32(a, b); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static uint16x8_t narrow(Floats a, Floats b) {
    return vreinterpretq_u16_s16(
        vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a)), vmovn_s32(vcvtnq_s32_f32(b))));
  }
  static void put(Floats a, Floats b, Floats c, Floats d, uint8_t* low, uint8_t* high) {
    const uint16x8_t first = narrow(a, b), second = narrow(c, d);
    vst1q_u8(low, vcombine_u8(vmovn_u16(first), vmovn_u16(second)));
    const uint8x16_t highs = vcombine_u8(vshrn_n_u16(first, 8), vshrn_n_u16(second, 8));
    vst1q_u8(high, veorq_u8(highs, vdupq_n_u8(0x80)));
  }
  static float largest(const float* x, int64_t columns) {
    // Magnitudes are compared as integers: so compared, infinity and not-a-number are the largest.
    uint32x4_t most = vdupq_n_u32(0);
    for (int64_t c = 0; c < columns; c += 8) {
      const Floats pairs = vpaddq_f32(vabsq_f32(vld1q_f32(x + c)), vabsq_f32(vld1q_f32(x + c + 4)));
      most = vmaxq_u32(most, vreinterpretq_u32_f32(vpaddq_f32(pairs, pairs)));
    }
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(most))), 0);
  }
};

struct Neon {
  static constexpr int kRows = 16;
  using Bytes = uint8x16_t;

  static constexpr int row_of(int i) { return i; }
  static Bytes load(const uint8_t* from) { return vld1q_u8(from); }
  static Bytes table(const uint8_t* from) { return vld1q_u8(from); }
  static Bytes look_up(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }
  static Bytes low_half(Bytes bytes) { return vandq_u8(bytes, vdupq_n_u8(15)); }
  static Bytes high_half(Bytes bytes) { return vshrq_n_u8(bytes, 4); }

  struct Planes {
    uint16x8_t low[2], high[2];
    int32x4_t bias;
    void start(int lookups) {
      low[0] = low[1] = high[0] = high[1] = vdupq_n_u16(0);
      bias = vdupq_n_s32(-lookups * kLookupBias);
    }
    void add(Bytes lows, Bytes highs) {
      low[0] = vaddw_u8(low[0], vget_low_u8(lows));
      low[1] = vaddw_high_u8(low[1], lows);
      high[0] = vaddw_u8(high[0], vget_low_u8(highs));
      high[1] = vaddw_high_u8(high[1], highs);
    }
    void finish(float scale, float* out) const {
      for (int i = 0; i < 2; ++i, out += 8) {
        add_floats(vaddw_u16(vshll_n_u16(vget_low_u16(high[i]), 8), vget_low_u16(low[i])), scale,
                   out);
        add_floats(vaddw_high_u16(vshll_high_n_u16(high[i], 8), low[i]), scale, out + 4);
      }
    }
    void add_floats(uint32x4_t sums, float scale, float* out) const {
      const int32x4_t all = vaddq_s32(vreinterpretq_s32_u32(sums), bias);
      vst1q_f32(out, vfmaq_n_f32(vld1q_f32(out), vcvtq_f32_s32(all), scale));
    }
  };
};

}  // namespace

const NqSigns kSignsNeon = {BytePanel<Neon>::arrange, byte_table_bytes, ByteTables<OneTable>::make,
                            BytePanel<Neon>::multiply};
