// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL) kernels. The matrix-vector product looks sums up by a permutation.

#include <immintrin.h>

#include "cpu/attend.h"
#include "cpu/convert.h"
#include "cpu/isa.h"
#include "cpu/lookup_panel.h"
#include "cpu/panel.h"

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
  static constexpr int kGroups = 8;
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats permute(Floats table, Words index) { return _mm512_permutexvar_ps(index, table); }
  static Words next(Words index) { return _mm512_srli_epi32(index, 4); }
  static void store_words(uint32_t* to, Words words) { _mm512_storeu_si512(to, words); }
  static Words load_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    transpose([=](int i) { return four_words(rows[i] + word); }, out);
  }
  // Four rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
  template <class Row>
  static void transpose(Row words_of_row, Words out[4]) {
    Words row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = _mm512_castsi128_si512(words_of_row(i));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x00f0, words_of_row(4 + i));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0x0f00, words_of_row(8 + i));
      row[i] = _mm512_mask_broadcast_i32x4(row[i], 0xf000, words_of_row(12 + i));
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
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    Words words[4];
    transpose([=](int i) { return _mm_castps_si128(_mm_loadu_ps(rows[i] + column)); }, words);
    for (int i = 0; i < 4; ++i) out[i] = _mm512_castsi512_ps(words[i]);
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

// A register holds one word of each of sixteen rows. The sixteen sums of four columns are the table
// of one permutation, and the low four bits of each lane are its index. On products of a layer's
// size this reaches 100 to 118 G sign-adds a second on one core of a Sapphire Rapids server; masked
// additions straight from memory reach 19 to 28.
constexpr int kLookupFloats = 128;

void lookup(const float* x, int64_t columns, float* tables) {
  const __m512 sign0 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
  const __m512 sign1 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const __m512 sign2 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const __m512 sign3 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int64_t k = 0; k < columns; k += 4, tables += 16) {
    const __m512 low = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), sign0,
                                       _mm512_mul_ps(_mm512_set1_ps(x[k + 1]), sign1));
    const __m512 high = _mm512_fmadd_ps(_mm512_set1_ps(x[k + 2]), sign2,
                                        _mm512_mul_ps(_mm512_set1_ps(x[k + 3]), sign3));
    _mm512_storeu_ps(tables, _mm512_add_ps(low, high));
  }
}

// Computes kBlocks times sixteen rows, of which row(i) is the i-th; they share the loads of the
// tables. As many words are prefetched from `ahead` on as are read: every token reads the weights
// from memory once, and the processor's own prefetcher does not follow rows read side by side.
template <int kBlocks, class Row>
void gemv_blocks(Row row, int64_t row_words, const uint32_t* ahead, const float* tables,
                 float* out) {
  __m512 sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = _mm512_setzero_ps();
  for (int64_t word = 0; word < row_words; word += kTileWords) {
    const int64_t left = row_words - word;
    const int count = left < kTileWords ? static_cast<int>(left) : kTileWords;
    const __mmask8 there = static_cast<__mmask8>((1 << count) - 1);
    for (int line = 0; line < kBlocks * kTileWords; ++line, ahead += 16) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
    }
    __m512i block[kBlocks][kTileWords];
    for (int b = 0; b < kBlocks; ++b) {
      if (count == kTileWords) {
        Zmm::transpose([=](int i) { return Zmm::four_words(row(b * 16 + i) + word); }, block[b]);
      } else {
        Zmm::transpose([=](int i) { return _mm_maskz_loadu_epi32(there, row(b * 16 + i) + word); },
                       block[b]);
      }
    }
    for (int w = 0; w < count; ++w, tables += kLookupFloats) {
      __m512i bits[kBlocks];
      for (int b = 0; b < kBlocks; ++b) bits[b] = block[b][w];
#pragma GCC unroll 8
      for (int group = 0; group < 8; ++group) {
        const __m512 table = _mm512_loadu_ps(tables + group * 16);
        for (int b = 0; b < kBlocks; ++b) {
          sum[b] = _mm512_add_ps(sum[b], _mm512_permutexvar_ps(bits[b], table));
          bits[b] = _mm512_srli_epi32(bits[b], 4);
        }
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) _mm512_storeu_ps(out + b * 16, sum[b]);
}

void gemv(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables, float* out) {
  for (int64_t first = 0; first < rows; first += 64) {
    const uint32_t* from = words + first * row_words;
    const int64_t left = rows - first;
    if (left >= 64) {
      gemv_blocks<4>([=](int i) { return from + i * row_words; }, row_words, from + 64 * row_words,
                     tables, out + first);
      continue;
    }
    // Rows past the last repeat it; their sums are dropped.
    const auto row = [=](int i) { return from + (i < left ? i : left - 1) * row_words; };
    alignas(64) float sums[64];
    if (left > 32) {
      gemv_blocks<4>(row, row_words, from, tables, sums);
    } else if (left > 16) {
      gemv_blocks<2>(row, row_words, from, tables, sums);
    } else {
      gemv_blocks<1>(row, row_words, from, tables, sums);
    }
    memcpy(out + first, sums, static_cast<size_t>(left) * sizeof(float));
  }
}

}  // namespace

const NqIsa kIsaAvx512 = {"avx512",
                          to_float,
                          from_float,
                          kLookupFloats,
                          lookup,
                          gemv,
                          Panel<Zmm>::run,
                          LookupPanel<Zmm>::run,
                          Attend<Zmm, Panel<Zmm>>::run};
