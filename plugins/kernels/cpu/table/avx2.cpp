// SPDX-License-Identifier: Apache-2.0
//
// Tables with AVX2 and FMA: a block is two registers of 16-bit numbers.

#include <immintrin.h>

#include "cpu/table/product.h"

namespace {

struct TwoYmm {
  static constexpr int kVectors = 4;
  using Floats = __m256;
  struct Words {
    __m256i low;
    __m256i high;
  };

  static Floats zero() { return _mm256_setzero_ps(); }
  static __m256i sixteen(const int8_t* from) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Words words8(const int8_t* from) { return {sixteen(from), sixteen(from + 16)}; }
  static Words words4(const int8_t* from) {
    const __m256i both = sixteen(from);
    return {_mm256_srai_epi16(_mm256_slli_epi16(both, 12), 12), _mm256_srai_epi16(both, 4)};
  }
  static __m256i load(const int16_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Floats multiply(const Words& words, const int16_t* x, float weight, Floats c) {
    const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(words.low, load(x)),
                                          _mm256_madd_epi16(words.high, load(x + 16)));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(weight), c);
  }
  static float sum(Floats a, Floats b) {
    const __m256 value = _mm256_add_ps(a, b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace

const NqTableIsa kTableAvx2 = {TableProduct<TwoYmm, 8>::run, TableProduct<TwoYmm, 4>::run};
