// SPDX-License-Identifier: Apache-2.0
//
// AVX2 kernels (with FMA and F16C): a word is broadcast, each lane shifts its own bit to the top
// and flips the sign of x with it.

#include <immintrin.h>

#include "convert.h"
#include "isa_table.h"
#include "panel.h"

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
  static Words load_words(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static void load_block(const uint32_t* const* rows, int64_t word, Words out[4]) {
    // Two rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
    Words row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(four_words(rows[i] + word)),
                                       four_words(rows[4 + i] + word), 1);
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
};

void to_float(const void* src, nq_type type, int64_t count, float* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* narrow = static_cast<const uint16_t*>(src);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(narrow + i));
    const __m256 value =
        type == NQ_FLOAT16
            ? _mm256_cvtph_ps(bits)
            : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    _mm256_storeu_ps(dst + i, value);
  }
  for (; i < count; ++i) {
    dst[i] = type == NQ_FLOAT16 ? half_to_float(narrow[i]) : bfloat_to_float(narrow[i]);
  }
}

void from_float(const float* src, nq_type type, int64_t count, void* dst) {
  if (type == NQ_FLOAT32) {
    memcpy(dst, src, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* narrow = static_cast<uint16_t*>(dst);
  int64_t i = 0;
  if (type == NQ_FLOAT16) {
    for (; i + 8 <= count; i += 8) {
      const __m128i bits =
          _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(narrow + i), bits);
    }
    for (; i < count; ++i) narrow[i] = float_to_half(src[i]);
  } else {
    for (; i < count; ++i) narrow[i] = float_to_bfloat(src[i]);
  }
}

inline float sum_of(__m256 value) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <int kRows>
void gemv_rows(const uint32_t* words, int64_t row_words, const float* x, float* out) {
  __m256 sum[kRows][2];
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
  // Lane i of group g holds column 8 g + i, so its bit moves up by 31 - 8 g - i.
  const __m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  for (int64_t w = 0; w < row_words; ++w) {
    __m256i bits[kRows];
    for (int r = 0; r < kRows; ++r) {
      bits[r] = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(words[r * row_words + w])),
                                  _mm256_sub_epi32(up, _mm256_set1_epi32(24)));
    }
    // The last group first: its bits need the smallest shift, each earlier one eight more.
    for (int g = 3; g >= 0; --g) {
      const __m256 value = _mm256_loadu_ps(x + w * 32 + g * 8);
      for (int r = 0; r < kRows; ++r) {
        const __m256 flip = _mm256_castsi256_ps(_mm256_and_si256(bits[r], top_bit()));
        sum[r][g & 1] = _mm256_add_ps(sum[r][g & 1], _mm256_xor_ps(value, flip));
        bits[r] = _mm256_slli_epi32(bits[r], 8);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = sum_of(_mm256_add_ps(sum[r][0], sum[r][1]));
}

void gemv(const uint32_t* words, int64_t row_words, int64_t rows, const float* x, float* out) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) gemv_rows<4>(words + row * row_words, row_words, x, out + row);
  for (; row < rows; ++row) gemv_rows<1>(words + row * row_words, row_words, x, out + row);
}

}  // namespace

const NqIsa kIsaAvx2 = {"avx2", to_float, from_float, gemv, Panel<Ymm>::run};
