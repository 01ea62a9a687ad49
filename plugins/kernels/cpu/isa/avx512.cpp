// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL) kernels.

#include <immintrin.h>

#include "cpu/attend.h"
#include "cpu/convert.h"
#include "cpu/isa.h"
#include "cpu/panel.h"
#include "cpu/signs/words16.h"

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
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    __m512i words[4];
    turn_loaded([=](int i) { return _mm_castps_si128(_mm_loadu_ps(rows[i] + column)); }, words);
    for (int i = 0; i < 4; ++i) out[i] = _mm512_castsi512_ps(words[i]);
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

const NqIsa kIsaAvx512 = {to_float, from_float, Attend<Zmm, Panel<Zmm>>::run};
