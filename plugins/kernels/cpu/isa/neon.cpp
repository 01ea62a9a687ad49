// SPDX-License-Identifier: Apache-2.0
//
// AArch64 Advanced SIMD kernels; every ARMv8-A processor has what they use.

#include <arm_neon.h>

#include "cpu/attend.h"
#include "cpu/convert.h"
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
  static Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static float total(Floats a) { return vaddvq_f32(a); }
  static Words load_words(const uint32_t* from) { return vld1q_u32(from); }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    const uint64x2_t low01 = pairs(vzip1q_u32(row(rows[0], word), row(rows[1], word)));
    const uint64x2_t low23 = pairs(vzip1q_u32(row(rows[2], word), row(rows[3], word)));
    const uint64x2_t high01 = pairs(vzip2q_u32(row(rows[0], word), row(rows[1], word)));
    const uint64x2_t high23 = pairs(vzip2q_u32(row(rows[2], word), row(rows[3], word)));
    out[0] = vreinterpretq_u32_u64(vzip1q_u64(low01, low23));
    out[1] = vreinterpretq_u32_u64(vzip2q_u64(low01, low23));
    out[2] = vreinterpretq_u32_u64(vzip1q_u64(high01, high23));
    out[3] = vreinterpretq_u32_u64(vzip2q_u64(high01, high23));
  }
  static Words row(const uint32_t* from, int64_t word) { return vld1q_u32(from + word); }
  static uint64x2_t pairs(Words words) { return vreinterpretq_u64_u32(words); }
  static Floats sign_one(Words bits) {
    // Bit select: the top bit from the word, the rest from 1.0f.
    return vreinterpretq_f32_u32(
        vbslq_u32(vdupq_n_u32(0x80000000u), bits, vdupq_n_u32(0x3f800000u)));
  }
  static Words shift_up(Words bits) { return vshlq_n_u32(bits, 1); }
};

void to_float(const void* src, nq_type type, int64_t count, float* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* narrow = static_cast<const uint16_t*>(src);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const uint16x4_t bits = vld1_u16(narrow + i);
    const float32x4_t value = type == NQ_FLOAT16 ? vcvt_f32_f16(vreinterpret_f16_u16(bits))
                                                 : vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
    vst1q_f32(dst + i, value);
  }
  for (; i < count; ++i) {
    dst[i] = type == NQ_FLOAT16 ? half_to_float(narrow[i]) : bfloat_to_float(narrow[i]);
  }
}

void from_float(const float* src, nq_type type, int64_t count, void* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* narrow = static_cast<uint16_t*>(dst);
  int64_t i = 0;
  if (type == NQ_FLOAT16) {
    for (; i + 4 <= count; i += 4) {
      vst1_u16(narrow + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    }
    for (; i < count; ++i) narrow[i] = float_to_half(src[i]);
  } else {
    for (; i < count; ++i) narrow[i] = float_to_bfloat(src[i]);
  }
}

}  // namespace

const NqIsa kIsaNeon = {"neon",           to_float,      from_float,
                        kNibbleFloats,    nibble_tables, nibble_gemv,
                        Panel<Neon>::run, nullptr,       Attend<Neon, Panel<Neon>>::run};
