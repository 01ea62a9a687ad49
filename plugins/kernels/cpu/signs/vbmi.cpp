// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AVX-512 VBMI and VNNI: tables of bytes. A permutation of 64 bytes reads four
// tables of 16 at once, each index saying by its upper bits which of them: so the four bytes of a
// row's word can stay side by side, and a product with ones adds up what they found, in 32 bits.

#include <immintrin.h>
#include <string.h>

#include "cpu/signs/byte_tables.h"
#include "cpu/signs/isa.h"
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

// One row of x times kBlocks times sixteen rows, of which row(i) is the i-th. As many words are
// prefetched from `ahead` on as are read.
template <int kBlocks, class Row>
void one_row(Row row, int64_t row_words, const uint32_t* ahead, const uint8_t* tables, float* out) {
  const float* scales = byte_table_scales(tables, row_words);
  __m512 sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = _mm512_setzero_ps();
  for (int64_t word = 0; word < row_words; word += kTurnWords) {
    const int64_t left = row_words - word;
    const int count = left < kTurnWords ? static_cast<int>(left) : kTurnWords;
    for (int line = 0; line < kBlocks * kTurnWords; ++line, ahead += 16) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    }
    __m512i words[kBlocks][kTurnWords];
    for (int b = 0; b < kBlocks; ++b) {
      turn_words([=](int i) { return row(b * 16 + i) + word; }, count, words[b]);
    }
    for (int pair = 0; pair < count; pair += kGroupWords, ++scales) {
      const int group = count - pair < kGroupWords ? count - pair : kGroupWords;
      Planes planes[kBlocks];
      for (int b = 0; b < kBlocks; ++b) planes[b].start(group);
      for (int w = pair; w < pair + group; ++w, tables += kWordBytes) {
        for (int b = 0; b < kBlocks; ++b) planes[b].add(tables, low_halves(words[b][w]));
        for (int b = 0; b < kBlocks; ++b) {
          planes[b].add(tables + kWordBytes / 2, high_halves(words[b][w]));
        }
      }
      for (int b = 0; b < kBlocks; ++b) sum[b] = planes[b].finish(*scales, sum[b]);
    }
  }
  for (int b = 0; b < kBlocks; ++b) _mm512_storeu_ps(out + b * 16, sum[b]);
}

constexpr int kBlocks = kPanelRows / 16;
constexpr int kTile = 32;  // words whose indices are kept
static_assert(kTile * kBlocks * 2 * 64 <= kSignScratch, "a tile fits the scratch memory");

// kHeight rows of x times kPanelRows rows, over `count` words: indices[word][half][block].
template <int kHeight>
void micro(const __m512i* indices, int count, const uint8_t* tables, int64_t row_words,
           int64_t word, float* out) {
  const int64_t stride = byte_table_bytes(row_words);
  for (int done = 0; done < count; done += kGroupWords) {
    const int group = count - done < kGroupWords ? count - done : kGroupWords;
    Planes planes[kHeight][kBlocks];
    for (int r = 0; r < kHeight; ++r) {
      for (int b = 0; b < kBlocks; ++b) planes[r][b].start(group);
    }
    const uint8_t* from = tables + (word + done) * kWordBytes;
    for (int half = 0; half < 2 * group; ++half, from += kWordBytes / 2, indices += kBlocks) {
      for (int r = 0; r < kHeight; ++r) {
        for (int b = 0; b < kBlocks; ++b) planes[r][b].add(from + r * stride, indices[b]);
      }
    }
    for (int r = 0; r < kHeight; ++r) {
      const float scale =
          byte_table_scales(tables + r * stride, row_words)[(word + done) / kGroupWords];
      for (int b = 0; b < kBlocks; ++b) {
        float* to = out + r * kPanelRows + b * 16;
        const __m512 sum = word + done == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(to);
        _mm512_storeu_ps(to, planes[r][b].finish(scale, sum));
      }
    }
  }
}

template <class Row>
void many_rows(Row row, const SignProduct& p) {
  constexpr int kHeight = 2;
  const int64_t stride = byte_table_bytes(p.row_words);
  __m512i* indices = static_cast<__m512i*>(p.scratch);
  for (int64_t word = 0; word < p.row_words; word += kTile) {
    const int64_t left = p.row_words - word;
    const int count = left < kTile ? static_cast<int>(left) : kTile;
    for (int at = 0; at < count; at += kTurnWords) {
      const int there = count - at < kTurnWords ? count - at : kTurnWords;
      for (int b = 0; b < kBlocks; ++b) {
        __m512i words[kTurnWords];
        turn_words([=](int i) { return row(b * 16 + i) + word + at; }, there, words);
        for (int w = 0; w < there; ++w) {
          __m512i* to = indices + (at + w) * 2 * kBlocks + b;
          to[0] = low_halves(words[w]);
          to[kBlocks] = high_halves(words[w]);
        }
      }
    }
    int64_t r = 0;
    for (; r + kHeight <= p.x_rows; r += kHeight) {
      micro<kHeight>(indices, count, p.tables + r * stride, p.row_words, word,
                     p.out + r * kPanelRows);
    }
    for (; r < p.x_rows; ++r) {
      micro<1>(indices, count, p.tables + r * stride, p.row_words, word, p.out + r * kPanelRows);
    }
  }
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  const uint32_t* from = p.words;
  const int64_t row_words = p.row_words;
  const int64_t last = p.rows - 1;
  // Rows past the last repeat it; their sums are dropped.
  const auto some = [=](int i) { return from + (i < last ? i : last) * row_words; };
  if (p.x_rows > 1) {
    many_rows(some, p);
  } else if (p.rows == kPanelRows) {
    const auto every = [=](int i) { return from + i * row_words; };
    const uint32_t* ahead = from + kPanelRows * row_words;
    for (int b = 0; b < kBlocks; b += 2) {
      const auto pair = [=](int i) { return every(b * 16 + i); };
      one_row<2>(pair, row_words, ahead + b * 16 * row_words, p.tables, p.out + b * 16);
    }
  } else {
    for (int b = 0; b * 16 < p.rows; ++b) {
      one_row<1>([=](int i) { return some(b * 16 + i); }, row_words, from, p.tables,
                 p.out + b * 16);
    }
  }
}

}  // namespace

const NqSigns kSignsVbmi = {byte_table_bytes, ByteTables<ZmmTables>::make, multiply};
