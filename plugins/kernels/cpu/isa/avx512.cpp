// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL) kernels.

#include <immintrin.h>

#include "cpu/attend.h"
#include "cpu/convert.h"
#include "cpu/isa.h"
#include "cpu/panel.h"

namespace {

struct Zmm {
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;
  using Floats = __m512;

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
  static Floats fma(float a, Floats b, Floats c) {
    return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
  }
  // Four rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    Floats row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + column));
      for (int lane = 1; lane < 4; ++lane) {
        row[i] = _mm512_mask_broadcast_f32x4(row[i], static_cast<__mmask16>(15 << (4 * lane)),
                                             _mm_loadu_ps(rows[lane * 4 + i] + column));
      }
    }
    const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
    const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
    const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
    const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
    out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
  }
};

void to_float(const void* src, nq_type type, int64_t count, float* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* narrow = static_cast<const uint16_t*>(src);
  int64_t i = 0;
  for (; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u);
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, narrow + i);
    const __m512 value =
        type == NQ_FLOAT16
            ? _mm512_cvtph_ps(bits)
            : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    _mm512_mask_storeu_ps(dst + i, mask, value);
  }
}

void from_float(const float* src, nq_type type, int64_t count, void* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* narrow = static_cast<uint16_t*>(dst);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1u);
    const __m512 value = _mm512_maskz_loadu_ps(mask, src + i);
    __m256i bits;
    if (type == NQ_FLOAT16) {
      bits = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
      const __m512i raw = _mm512_castps_si512(value);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(raw, 16), _mm512_set1_epi32(1));
      const __m512i rounded =
          _mm512_add_epi32(raw, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
      const __m512i kept = _mm512_mask_or_epi32(rounded, nan, raw, _mm512_set1_epi32(0x00400000));
      bits = _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
    }
    _mm256_mask_storeu_epi16(narrow + i, mask, bits);
  }
}

}  // namespace

const NqIsa kIsaAvx512 = {to_float, from_float, Attend<Zmm, Panel<Zmm>, to_float>::run};
