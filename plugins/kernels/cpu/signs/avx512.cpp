// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AVX-512 (F, BW, DQ, VL) alone: tables of floats. A register holds one word of
// each of sixteen rows; the sixteen sums of four columns are the table of one permutation, and the
// low four bits of each lane are its index. Nothing is rounded but the sums, which are added in the
// same order for one row of x and for many. Permutations of bytes (avx2.cpp) are no faster where
// there is one port for both.

#include <immintrin.h>

#include "cpu/signs/words16.h"

namespace {

constexpr int kWordFloats = 128;  // eight tables of sixteen

int64_t table_bytes(int64_t words) { return words * kWordFloats * 4; }

void make_tables(const float* x, int64_t first, int64_t columns, int64_t, uint8_t* row) {
  const __m512 sign0 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const __m512 sign1 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const __m512 sign2 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const __m512 sign3 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  float* tables = reinterpret_cast<float*>(row) + first / 32 * kWordFloats;
  for (int64_t k = 0; k < columns; k += 4, tables += 16) {
    const __m512 low = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), sign0,
                                       _mm512_mul_ps(_mm512_set1_ps(x[k + 1]), sign1));
    const __m512 high = _mm512_fmadd_ps(_mm512_set1_ps(x[k + 2]), sign2,
                                        _mm512_mul_ps(_mm512_set1_ps(x[k + 3]), sign3));
    _mm512_storeu_ps(tables, _mm512_add_ps(low, high));
  }
}

// kHeight rows of x times kTiles times sixteen rows, which share the loads of the tables.
template <int kHeight, int kTiles>
void micro(const uint32_t* words, int64_t row_words, const float* tables, float* out) {
  const int64_t stride = row_words * kWordFloats;
  __m512 sum[kHeight][kTiles];
  for (int r = 0; r < kHeight; ++r) {
    for (int t = 0; t < kTiles; ++t) sum[r][t] = _mm512_setzero_ps();
  }
  for (int64_t w = 0; w < row_words; ++w, tables += kWordFloats, words += kTileRows) {
    __m512i index[kTiles];
    for (int t = 0; t < kTiles; ++t) {
      const uint32_t* from = words + t * kTileRows * row_words;
      if (kHeight == 1) __builtin_prefetch(from + kPanelRows * row_words);
      index[t] = _mm512_loadu_si512(from);
    }
#pragma GCC unroll 8
    for (int group = 0; group < 8; ++group) {
      for (int r = 0; r < kHeight; ++r) {
        const __m512 table = _mm512_load_ps(tables + r * stride + group * 16);
        for (int t = 0; t < kTiles; ++t) {
          sum[r][t] = _mm512_add_ps(sum[r][t], _mm512_permutexvar_ps(index[t], table));
        }
      }
      for (int t = 0; t < kTiles; ++t) index[t] = _mm512_srli_epi32(index[t], 4);
    }
  }
  for (int r = 0; r < kHeight; ++r) {
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(out + r * kPanelRows + t * 16, sum[r][t]);
  }
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  constexpr int kHeight = 4;
  constexpr int kTiles = kPanelRows / kTileRows;
  const int64_t stride = p.row_words * kWordFloats;
  const float* tables = reinterpret_cast<const float*>(p.tables);
  int64_t row = 0;
  for (; row + kHeight <= p.x_rows && p.rows > kPanelRows / 2; row += kHeight) {
    micro<kHeight, kTiles>(p.words, p.row_words, tables + row * stride, p.out + row * kPanelRows);
  }
  for (; row < p.x_rows; ++row) {
    float* out = p.out + row * kPanelRows;
    if (p.rows > kPanelRows / 2) {
      micro<1, kTiles>(p.words, p.row_words, tables + row * stride, out);
    } else if (p.rows > kTileRows) {
      micro<1, 2>(p.words, p.row_words, tables + row * stride, out);
    } else {
      micro<1, 1>(p.words, p.row_words, tables + row * stride, out);
    }
  }
}

}  // namespace

const NqSigns kSignsAvx512 = {arrange_words16, table_bytes, make_tables, multiply};
