// SPDX-License-Identifier: Apache-2.0
//
// AVX2 kernels (with FMA and F16C). The matrix-vector product looks sums up by a permutation.

#include <immintrin.h>

#include "cpu/attend.h"
#include "cpu/convert_rows.h"
#include "cpu/isa.h"
#include "cpu/lookup_panel.h"
#include "cpu/panel.h"

namespace {

inline __m256i top_bit() { return _mm256_set1_epi32(static_cast<int>(0x80000000u)); }

struct Ymm {
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 6;
  using Floats = __m256;
  using Words = __m256i;

  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
  static Floats fma(float a, Floats b, Floats c) {
    return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
  }
  static constexpr int kGroups = 11;
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats permute(Floats table, Words index) {
    return _mm256_permutevar8x32_ps(table, index);
  }
  static Words next(Words index) { return _mm256_srli_epi32(index, 3); }
  static void store_words(uint32_t* to, Words words) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
  }
  static Words load_words(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    transpose([=](int i) { return four_words(rows[i] + word); }, out);
  }
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    Words words[4];
    transpose([=](int i) { return _mm_castps_si128(_mm_loadu_ps(rows[i] + column)); }, words);
    for (int i = 0; i < 4; ++i) out[i] = _mm256_castsi256_ps(words[i]);
  }
  // Two rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
  template <class Row>
  static void transpose(Row words_of_row, Words out[4]) {
    Words row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] =
          _mm256_inserti128_si256(_mm256_castsi128_si256(words_of_row(i)), words_of_row(4 + i), 1);
    }
    const Words low01 = _mm256_unpacklo_epi32(row[0], row[1]);
    const Words low23 = _mm256_unpacklo_epi32(row[2], row[3]);
    const Words high01 = _mm256_unpackhi_epi32(row[0], row[1]);
    const Words high23 = _mm256_unpackhi_epi32(row[2], row[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
  }
  static __m128i four_words(const uint32_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static Floats sign_one(Words bits) {
    return _mm256_or_ps(_mm256_castsi256_ps(_mm256_and_si256(bits, top_bit())),
                        _mm256_set1_ps(1.0f));
  }
  static Words shift_up(Words bits) { return _mm256_slli_epi32(bits, 1); }
  static __m128i halves(const uint16_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static Floats widen_half(const uint16_t* from) { return _mm256_cvtph_ps(halves(from)); }
  static Floats widen_bfloat(const uint16_t* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(from)), 16));
  }
  static void narrow_half(Floats value, uint16_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

// A register holds one word of each of eight rows. The eight sums of three columns are the table of
// one permutation, and the low three bits of each lane are its index. A word is ten groups of three
// columns and one of two. On products of a layer's size this reaches 35 to 48 G sign-adds a second
// on one core of a Sapphire Rapids server; flipping the sign of each value reaches 12 to 17.
constexpr int kGroups = 11;
constexpr int kLookupFloats = kGroups * 8;

void lookup(const float* x, int64_t columns, float* tables) {
  const __m256 sign0 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
  const __m256 sign1 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const __m256 sign2 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  for (int64_t word = 0; word < columns; word += 32) {
    for (int group = 0; group < kGroups; ++group, tables += 8) {
      const float* from = x + word + group * 3;
      __m256 sum = _mm256_fmadd_ps(_mm256_set1_ps(from[0]), sign0,
                                   _mm256_mul_ps(_mm256_set1_ps(from[1]), sign1));
      if (group + 1 < kGroups) sum = _mm256_fmadd_ps(_mm256_set1_ps(from[2]), sign2, sum);
      _mm256_storeu_ps(tables, sum);
    }
  }
}

// Computes kBlocks times eight rows, which share the loads of the tables.
template <int kBlocks>
void gemv_blocks(const uint32_t* const* rows, int64_t row_words, const float* tables, float* out) {
  __m256 sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = _mm256_setzero_ps();
  for (int64_t word = 0; word < row_words; word += kTileWords) {
    const int64_t left = row_words - word;
    const int count = left < kTileWords ? static_cast<int>(left) : kTileWords;
    __m256i block[kBlocks][kTileWords];
    for (int b = 0; b < kBlocks; ++b) {
      if (count == kTileWords) {
        Ymm::load_block(rows + b * 8, word, block[b]);
        continue;
      }
      for (int w = 0; w < count; ++w) {
        alignas(32) uint32_t lanes[8];
        for (int i = 0; i < 8; ++i) lanes[i] = rows[b * 8 + i][word + w];
        block[b][w] = Ymm::load_words(lanes);
      }
    }
    for (int w = 0; w < count; ++w) {
      __m256i bits[kBlocks];
      for (int b = 0; b < kBlocks; ++b) bits[b] = block[b][w];
      for (int group = 0; group < kGroups; ++group, tables += 8) {
        const __m256 table = _mm256_loadu_ps(tables);
        for (int b = 0; b < kBlocks; ++b) {
          sum[b] = _mm256_add_ps(sum[b], _mm256_permutevar8x32_ps(table, bits[b]));
          bits[b] = _mm256_srli_epi32(bits[b], 3);
        }
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) _mm256_storeu_ps(out + b * 8, sum[b]);
}

void gemv(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables, float* out) {
  constexpr int64_t kBlockRows = 32;
  for (int64_t row = 0; row < rows; row += kBlockRows) {
    // Rows past the last repeat it; their sums are dropped.
    const uint32_t* block[kBlockRows];
    for (int64_t i = 0; i < kBlockRows; ++i) {
      block[i] = words + (row + i < rows ? row + i : rows - 1) * row_words;
    }
    const int64_t left = rows - row;
    if (left >= kBlockRows) {
      gemv_blocks<4>(block, row_words, tables, out + row);
      continue;
    }
    alignas(32) float sums[kBlockRows];
    if (left > 8) {
      gemv_blocks<4>(block, row_words, tables, sums);
    } else {
      gemv_blocks<1>(block, row_words, tables, sums);
    }
    memcpy(out + row, sums, static_cast<size_t>(left) * sizeof(float));
  }
}

}  // namespace

const NqIsa kIsaAvx2 = {"avx2",
                        ConvertRows<Ymm>::to_float,
                        ConvertRows<Ymm>::from_float,
                        kLookupFloats,
                        lookup,
                        gemv,
                        Panel<Ymm>::run,
                        LookupPanel<Ymm>::run,
                        Attend<Ymm, Panel<Ymm>>::run};
