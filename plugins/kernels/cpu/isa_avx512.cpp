// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL) kernels. The packed bits are the masks: sixteen signs enter a mask
// register straight from memory and choose between x and -x.

#include <immintrin.h>

#include "convert.h"
#include "isa_table.h"
#include "panel.h"

namespace {

struct Zmm {
  static constexpr int kLanes = 16;
  static constexpr int kVectors = 4;
  static constexpr int kRows = 6;
  using Floats = __m512;
  using Words = __m512i;

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
  static Floats fma(float a, Floats b, Floats c) {
    return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
  }
  static Words load_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    // Four rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
    Words row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = _mm512_castsi128_si512(four_words(rows[i] + word));
      row[i] = _mm512_inserti32x4(row[i], four_words(rows[4 + i] + word), 1);
      row[i] = _mm512_inserti32x4(row[i], four_words(rows[8 + i] + word), 2);
      row[i] = _mm512_inserti32x4(row[i], four_words(rows[12 + i] + word), 3);
    }
    const Words low01 = _mm512_unpacklo_epi32(row[0], row[1]);
    const Words low23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const Words high01 = _mm512_unpackhi_epi32(row[0], row[1]);
    const Words high23 = _mm512_unpackhi_epi32(row[2], row[3]);
    out[0] = _mm512_unpacklo_epi64(low01, low23);
    out[1] = _mm512_unpackhi_epi64(low01, low23);
    out[2] = _mm512_unpacklo_epi64(high01, high23);
    out[3] = _mm512_unpackhi_epi64(high01, high23);
  }
  static __m128i four_words(const uint32_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static Floats sign_one(Words bits) {
    // (bits & top) | one, as one three-input logic operation.
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(static_cast<int>(0x80000000u)),
                                  _mm512_castps_si512(_mm512_set1_ps(1.0f)), 0xEA));
  }
  static Words shift_up(Words bits) { return _mm512_slli_epi32(bits, 1); }
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

// kRows packed rows share the loads of x; two accumulators a row hide the latency of the adds.
template <int kRows>
void gemv_rows(const uint32_t* words, int64_t row_words, const float* x, float* out) {
  __m512 low[kRows];
  __m512 high[kRows];
  for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm512_setzero_ps();
  const __m512 top = _mm512_set1_ps(-0.0f);
  for (int64_t w = 0; w < row_words; ++w) {
    const __m512 x_low = _mm512_loadu_ps(x + w * 32);
    const __m512 x_high = _mm512_loadu_ps(x + w * 32 + 16);
    const __m512 minus_low = _mm512_xor_ps(x_low, top);
    const __m512 minus_high = _mm512_xor_ps(x_high, top);
    for (int r = 0; r < kRows; ++r) {
      const uint32_t bits = words[r * row_words + w];
      const __mmask16 k_low = static_cast<__mmask16>(bits);
      const __mmask16 k_high = static_cast<__mmask16>(bits >> 16);
      low[r] = _mm512_add_ps(low[r], _mm512_mask_blend_ps(k_low, x_low, minus_low));
      high[r] = _mm512_add_ps(high[r], _mm512_mask_blend_ps(k_high, x_high, minus_high));
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = _mm512_reduce_add_ps(_mm512_add_ps(low[r], high[r]));
}

void gemv(const uint32_t* words, int64_t row_words, int64_t rows, const float* x, float* out) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) gemv_rows<8>(words + row * row_words, row_words, x, out + row);
  for (; row < rows; ++row) gemv_rows<1>(words + row * row_words, row_words, x, out + row);
}

}  // namespace

const NqIsa kIsaAvx512 = {"avx512", to_float, from_float, gemv, Panel<Zmm>::run};
