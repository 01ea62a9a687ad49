// SPDX-License-Identifier: Apache-2.0
//
// Tables with AVX2 and FMA: 16 floats are two registers.

#include <immintrin.h>

#include "cpu/table/product.h"

namespace {

struct TwoYmm {
  static constexpr int kSingleRows = 2;
  static constexpr int kTableRows = 1;
  static constexpr int kVectors = 2;
  struct Floats {
    __m256 a;
    __m256 b;
  };

  static Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Floats load(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
  }
  static Floats scaled(Floats a, float b, Floats c) {
    const __m256 scale = _mm256_set1_ps(b);
    return {_mm256_fmadd_ps(a.a, scale, c.a), _mm256_fmadd_ps(a.b, scale, c.b)};
  }
  static float sum(Floats value) {
    const __m256 eight = _mm256_add_ps(value.a, value.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static __m256i eight_codes(const int8_t* from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static Floats codes8(const int8_t* from) {
    return {_mm256_cvtepi32_ps(eight_codes(from)), _mm256_cvtepi32_ps(eight_codes(from + 8))};
  }
  static __m256 low_half(__m256i codes) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(codes, 28), 28));
  }
  static __m256 high_half(__m256i codes) { return _mm256_cvtepi32_ps(_mm256_srai_epi32(codes, 4)); }
  static void codes4(const int8_t* from, Floats* low, Floats* high) {
    const __m256i a = eight_codes(from);
    const __m256i b = eight_codes(from + 8);
    *low = {low_half(a), low_half(b)};
    *high = {high_half(a), high_half(b)};
  }
};

}  // namespace

const NqTableIsa kTableAvx2 = {TableProduct<TwoYmm, 8>::run, TableProduct<TwoYmm, 4>::run};
