// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AVX-512 VBMI and VNNI: tables of bytes. A permutation of 64 bytes reads four
// tables of 16 at once, each index saying by its upper bits which of them: so the four bytes of a
// row's word can stay side by side, and a product with ones adds up what they found, in 32 bits.

#include <immintrin.h>

#include "cpu/signs/byte_tables.h"
#include "cpu/signs/words16.h"

namespace {

// Four tables side by side, one in each 128-bit lane.
struct ZmmTables {
  static constexpr int kTables = 4;
  using Floats = __m512;

  static Floats quads(const float* x, int half, int) {
    const __m512 first = _mm512_loadu_ps(x);
    const __m512 second = _mm512_loadu_ps(x + 16);
    return half == 0 ? _mm512_shuffle_f32x4(first, second, 0x88)
                     : _mm512_shuffle_f32x4(first, second, 0xdd);
  }
  template <int i>
  static Floats each(Floats q) {
    return _mm512_permute_ps(q, i * 0x55);
  }
  static Floats signed0(Floats a) {
    return _mm512_mul_ps(a, _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1));
  }
  static Floats signed1(Floats a, Floats b) {
    return _mm512_fmadd_ps(
        a, _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1), b);
  }
  static Floats scaled(Floats a, float b) { return _mm512_mul_ps(a, _mm512_set1_ps(b)); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static void put(Floats a, Floats b, Floats c, Floats d, uint8_t* low, uint8_t* high) {
    const __m512i first = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    const __m512i second = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    const __m512i byte = _mm512_set1_epi16(0xff);
    const __m512i lows =
        _mm512_packus_epi16(_mm512_and_si512(first, byte), _mm512_and_si512(second, byte));
    const __m512i highs =
        _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
    _mm512_storeu_si512(low, lows);
    _mm512_storeu_si512(high, _mm512_xor_si512(highs, _mm512_set1_epi8(static_cast<char>(0x80))));
  }
  static float largest(const float* x, int64_t columns) {
    // Magnitudes are compared as integers: so compared, infinity and not-a-number are the largest.
    __m512i most = _mm512_setzero_si512();
    for (int64_t c = 0; c < columns; c += 16) {
      __m512 sum = _mm512_abs_ps(_mm512_loadu_ps(x + c));
      sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xb1));
      sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0x4e));
      most = _mm512_max_epi32(most, _mm512_castps_si512(sum));
    }
    most = _mm512_max_epi32(most, _mm512_shuffle_i32x4(most, most, 0x4e));
    const __m128i four =
        _mm_max_epi32(_mm512_castsi512_si128(most), _mm512_extracti32x4_epi32(most, 1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
  }
};

// Indices into the tables of a word's half bytes.
__m512i low_halves(__m512i words) {
  // (words & 15) | the number of the byte times 16, as one three-input logic operation.
  return _mm512_ternarylogic_epi32(words, _mm512_set1_epi8(15), _mm512_set1_epi32(0x30201000),
                                   0xea);
}
__m512i high_halves(__m512i words) { return low_halves(_mm512_srli_epi32(words, 4)); }

// Sums of looked-up bytes for sixteen rows.
struct Planes {
  __m512i low, high;
  void start(int words) {
    low = _mm512_set1_epi32(-words * kWordLookups * kLookupBias);
    high = _mm512_setzero_si512();
  }
  void add(const uint8_t* tables, __m512i index) {
    const __m512i ones = _mm512_set1_epi8(1);
    low = _mm512_dpbusd_epi32(low, look_up(tables, index), ones);
    high = _mm512_dpbusd_epi32(high, look_up(tables + kPlaneBytes, index), ones);
  }
  static __m512i look_up(const uint8_t* tables, __m512i index) {
    return _mm512_permutexvar_epi8(index, _mm512_load_si512(tables));
  }
  __m512 finish(float scale, __m512 sum) const {
    const __m512i all = _mm512_add_epi32(low, _mm512_slli_epi32(high, 8));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(all), _mm512_set1_ps(scale), sum);
  }
};

// kHeight rows of x times kTiles times sixteen rows.
template <int kHeight, int kTiles>
void micro(const uint32_t* words, int64_t row_words, const uint8_t* tables, float* out) {
  const int64_t stride = byte_table_bytes(row_words);
  const float* scales = byte_table_scales(tables, row_words);
  __m512 sum[kHeight][kTiles];
  for (int r = 0; r < kHeight; ++r) {
    for (int t = 0; t < kTiles; ++t) sum[r][t] = _mm512_setzero_ps();
  }
  for (int64_t word = 0; word < row_words; word += kGroupWords, ++scales) {
    const int group = row_words - word < kGroupWords ? 1 : kGroupWords;
    Planes planes[kHeight][kTiles];
    for (int r = 0; r < kHeight; ++r) {
      for (int t = 0; t < kTiles; ++t) planes[r][t].start(group);
    }
    for (int w = 0; w < group; ++w, tables += kWordBytes, words += kTileRows) {
      __m512i index[2][kTiles];
      for (int t = 0; t < kTiles; ++t) {
        const uint32_t* from = words + t * kTileRows * row_words;
        // Every token reads the weights from memory once, and the processor's own prefetchers stop
        // at every page.
        if (kHeight == 1) __builtin_prefetch(from + kPanelRows * row_words);
        const __m512i bits = _mm512_loadu_si512(from);
        index[0][t] = low_halves(bits);
        index[1][t] = high_halves(bits);
      }
      for (int half = 0; half < 2; ++half) {
        for (int r = 0; r < kHeight; ++r) {
          const uint8_t* from = tables + r * stride + half * kWordBytes / 2;
          for (int t = 0; t < kTiles; ++t) planes[r][t].add(from, index[half][t]);
        }
      }
    }
    for (int r = 0; r < kHeight; ++r) {
      const float scale =
          *reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(scales) + r * stride);
      for (int t = 0; t < kTiles; ++t) sum[r][t] = planes[r][t].finish(scale, sum[r][t]);
    }
  }
  for (int r = 0; r < kHeight; ++r) {
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(out + r * kPanelRows + t * 16, sum[r][t]);
  }
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  constexpr int kHeight = 2;
  constexpr int kTiles = kPanelRows / kTileRows;
  const int64_t stride = byte_table_bytes(p.row_words);
  int64_t row = 0;
  for (; row + kHeight <= p.x_rows && p.rows > kPanelRows / 2; row += kHeight) {
    micro<kHeight, kTiles>(p.words, p.row_words, p.tables + row * stride, p.out + row * kPanelRows);
  }
  for (; row < p.x_rows; ++row) {
    const uint8_t* tables = p.tables + row * stride;
    float* out = p.out + row * kPanelRows;
    if (p.rows > kPanelRows / 2) {
      micro<1, kTiles>(p.words, p.row_words, tables, out);
    } else if (p.rows > kTileRows) {
      micro<1, 2>(p.words, p.row_words, tables, out);
    } else {
      micro<1, 1>(p.words, p.row_words, tables, out);
    }
  }
}

}  // namespace

const NqSigns kSignsVbmi = {arrange_words16, byte_table_bytes, ByteTables<ZmmTables>::make,
                            multiply};
