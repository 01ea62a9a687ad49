// SPDX-License-Identifier: Apache-2.0
//
// AArch64 Advanced SIMD kernels; every ARMv8-A processor has what they use.

#include <arm_neon.h>

#include "cpu/attend.h"
#include "cpu/convert_rows.h"
#include "cpu/isa.h"
#include "cpu/lookup.h"
#include "cpu/panel.h"

namespace {

struct Neon {
  static constexpr int kLanes = 4;
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;
  using Floats = float32x4_t;
  using Words = uint32x4_t;

  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats value) { vst1q_f32(to, value); }
  static Floats fma(float a, Floats b, Floats c) { return vfmaq_n_f32(c, b, a); }
  static Words load_words(const uint32_t* from) { return vld1q_u32(from); }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    transpose([=](int i) { return vld1q_u32(rows[i] + word); }, out);
  }
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    Words words[4];
    transpose([=](int i) { return vreinterpretq_u32_f32(vld1q_f32(rows[i] + column)); }, words);
    for (int i = 0; i < 4; ++i) out[i] = vreinterpretq_f32_u32(words[i]);
  }
  template <class Row>
  static void transpose(Row row, Words out[4]) {
    const uint64x2_t low01 = pairs(vzip1q_u32(row(0), row(1)));
    const uint64x2_t low23 = pairs(vzip1q_u32(row(2), row(3)));
    const uint64x2_t high01 = pairs(vzip2q_u32(row(0), row(1)));
    const uint64x2_t high23 = pairs(vzip2q_u32(row(2), row(3)));
    out[0] = vreinterpretq_u32_u64(vzip1q_u64(low01, low23));
    out[1] = vreinterpretq_u32_u64(vzip2q_u64(low01, low23));
    out[2] = vreinterpretq_u32_u64(vzip1q_u64(high01, high23));
    out[3] = vreinterpretq_u32_u64(vzip2q_u64(high01, high23));
  }
  static uint64x2_t pairs(Words words) { return vreinterpretq_u64_u32(words); }
  static Floats sign_one(Words bits) {
    // Bit select: the top bit from the word, the rest from 1.0f.
    return vreinterpretq_f32_u32(
        vbslq_u32(vdupq_n_u32(0x80000000u), bits, vdupq_n_u32(0x3f800000u)));
  }
  static Words shift_up(Words bits) { return vshlq_n_u32(bits, 1); }
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

const NqIsa kIsaNeon = {"neon",
                        ConvertRows<Neon>::to_float,
                        ConvertRows<Neon>::from_float,
                        kNibbleFloats,
                        nibble_tables,
                        nibble_gemv,
                        Panel<Neon>::run,
                        nullptr,
                        Attend<Neon, Panel<Neon>>::run};
