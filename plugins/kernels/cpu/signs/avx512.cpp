// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AVX-512 (F, BW, DQ, VL) alone: tables of floats. A register holds one word of
// each of sixteen rows; the sixteen sums of four columns are the table of one permutation, and the
// low four bits of each lane are its index. Nothing is rounded but the sums, which are added in the
// same order for one row of x and for many. Permutations of bytes (avx2.cpp) are no faster where
// there is one port for both.

#include <immintrin.h>
#include <string.h>

#include "cpu/signs/isa.h"
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

// One row of x times kBlocks times sixteen rows, of which row(i) is the i-th; they share the loads
// of the tables. As many words are prefetched from `ahead` on as are read: every token reads the
// weights from memory once, and the processor's own prefetcher does not follow rows read side by
// side.
template <int kBlocks, class Row>
void one_row(Row row, int64_t row_words, const uint32_t* ahead, const float* tables, float* out) {
  __m512 sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = _mm512_setzero_ps();
  for (int64_t word = 0; word < row_words; word += kTurnWords) {
    const int64_t left = row_words - word;
    const int count = left < kTurnWords ? static_cast<int>(left) : kTurnWords;
    for (int line = 0; line < kBlocks * kTurnWords; ++line, ahead += 16) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    }
    __m512i block[kBlocks][kTurnWords];
    for (int b = 0; b < kBlocks; ++b) {
      turn_words([=](int i) { return row(b * 16 + i) + word; }, count, block[b]);
    }
    for (int w = 0; w < count; ++w, tables += kWordFloats) {
      __m512i bits[kBlocks];
      for (int b = 0; b < kBlocks; ++b) bits[b] = block[b][w];
#pragma GCC unroll 8
      for (int group = 0; group < 8; ++group) {
        const __m512 table = _mm512_load_ps(tables + group * 16);
        for (int b = 0; b < kBlocks; ++b) {
          sum[b] = _mm512_add_ps(sum[b], _mm512_permutexvar_ps(bits[b], table));
          bits[b] = _mm512_srli_epi32(bits[b], 4);
        }
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) _mm512_storeu_ps(out + b * 16, sum[b]);
}

constexpr int kBlocks = kPanelRows / 16;
constexpr int kTile = 32;  // words turned round for all rows of x
static_assert(kTile * kBlocks * 64 <= kSignScratch, "a tile fits the scratch memory");

// kHeight rows of x times kPanelRows rows, over `count` words of them: bits[word][block].
template <int kHeight>
void micro(const __m512i* bits, int count, const float* tables, int64_t stride, float* out,
           bool first) {
  __m512 sum[kHeight][kBlocks];
  for (int r = 0; r < kHeight; ++r) {
    for (int b = 0; b < kBlocks; ++b) {
      sum[r][b] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * kPanelRows + b * 16);
    }
  }
  for (int w = 0; w < count; ++w, tables += kWordFloats) {
    __m512i index[kBlocks];
    for (int b = 0; b < kBlocks; ++b) index[b] = bits[w * kBlocks + b];
#pragma GCC unroll 8
    for (int group = 0; group < 8; ++group) {
      for (int r = 0; r < kHeight; ++r) {
        const __m512 entries = _mm512_load_ps(tables + r * stride + group * 16);
        for (int b = 0; b < kBlocks; ++b) {
          sum[r][b] = _mm512_add_ps(sum[r][b], _mm512_permutexvar_ps(index[b], entries));
        }
      }
      for (int b = 0; b < kBlocks; ++b) index[b] = _mm512_srli_epi32(index[b], 4);
    }
  }
  for (int r = 0; r < kHeight; ++r) {
    for (int b = 0; b < kBlocks; ++b) {
      _mm512_storeu_ps(out + r * kPanelRows + b * 16, sum[r][b]);
    }
  }
}

template <int kHeight>
void rows_of(int64_t height, const __m512i* bits, int count, const float* tables, int64_t stride,
             float* out, bool first) {
  if (height == kHeight) {
    micro<kHeight>(bits, count, tables, stride, out, first);
  } else if constexpr (kHeight > 1) {
    rows_of<kHeight - 1>(height, bits, count, tables, stride, out, first);
  }
}

template <class Row>
void many_rows(Row row, const SignProduct& p) {
  constexpr int kHeight = 4;
  const int64_t stride = p.row_words * kWordFloats;
  const float* tables = reinterpret_cast<const float*>(p.tables);
  __m512i* bits = static_cast<__m512i*>(p.scratch);
  for (int64_t word = 0; word < p.row_words; word += kTile) {
    const int64_t left = p.row_words - word;
    const int count = left < kTile ? static_cast<int>(left) : kTile;
    for (int at = 0; at < count; at += kTurnWords) {
      const int there = count - at < kTurnWords ? count - at : kTurnWords;
      for (int b = 0; b < kBlocks; ++b) {
        __m512i words[kTurnWords];
        turn_words([=](int i) { return row(b * 16 + i) + word + at; }, there, words);
        for (int w = 0; w < there; ++w) bits[(at + w) * kBlocks + b] = words[w];
      }
    }
    for (int64_t r = 0; r < p.x_rows; r += kHeight) {
      rows_of<kHeight>(p.x_rows - r < kHeight ? p.x_rows - r : kHeight, bits, count,
                       tables + r * stride + word * kWordFloats, stride, p.out + r * kPanelRows,
                       word == 0);
    }
  }
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  const uint32_t* from = p.words;
  const int64_t row_words = p.row_words;
  const int64_t last = p.rows - 1;
  const float* tables = reinterpret_cast<const float*>(p.tables);
  // Rows past the last repeat it; their sums are dropped.
  const auto some = [=](int i) { return from + (i < last ? i : last) * row_words; };
  if (p.x_rows > 1) {
    many_rows(some, p);
  } else if (p.rows == kPanelRows) {
    one_row<4>([=](int i) { return from + i * row_words; }, row_words,
               from + kPanelRows * row_words, tables, p.out);
  } else if (p.rows > 32) {
    one_row<4>(some, row_words, from, tables, p.out);
  } else if (p.rows > 16) {
    one_row<2>(some, row_words, from, tables, p.out);
  } else {
    one_row<1>(some, row_words, from, tables, p.out);
  }
}

}  // namespace

const NqSigns kSignsAvx512 = {table_bytes, make_tables, multiply};
