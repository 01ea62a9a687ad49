// SPDX-License-Identifier: Apache-2.0
//
// Words of sixteen packed rows, turned round with AVX-512 so that a register has one word of each.

#ifndef NQ_CPU_SIGNS_WORDS16_H
#define NQ_CPU_SIGNS_WORDS16_H

#include <immintrin.h>
#include <stdint.h>

namespace {

constexpr int kTurnWords = 4;

// Four rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
template <class Load>
inline void turn_loaded(Load load, __m512i out[kTurnWords]) {
  __m512i row[4];
  for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_castsi128_si512(load(i));
    row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x00f0, load(4 + i));
    row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x0f00, load(8 + i));
    row[i] = _mm512_mask_broadcast_i32x4(row[i], 0xf000, load(12 + i));
  }
  const __m512i low01 = _mm512_unpacklo_epi32(row[0], row[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(row[2], row[3]);
  const __m512i high01 = _mm512_unpackhi_epi32(row[0], row[1]);
  const __m512i high23 = _mm512_unpackhi_epi32(row[2], row[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}

// out[w] = word w of the rows at row(0) to row(15), of which `count` words are there.
template <class Row>
inline void turn_words(Row row, int count, __m512i out[kTurnWords]) {
  if (count == kTurnWords) {
    turn_loaded([=](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(i))); },
                out);
  } else {
    const __mmask8 there = static_cast<__mmask8>((1 << count) - 1);
    turn_loaded([=](int i) { return _mm_maskz_loadu_epi32(there, row(i)); }, out);
  }
}

}  // namespace

#endif  // NQ_CPU_SIGNS_WORDS16_H
