// SPDX-License-Identifier: Apache-2.0
//
// AVX2 kernels (with FMA and F16C).

#include <immintrin.h>

#include "cpu/attend.h"
#include "cpu/convert_rows.h"
#include "cpu/isa.h"
#include "cpu/panel.h"

namespace {

struct Ymm {
  static constexpr int kLanes = 8;
  static constexpr int kVectors = 2;
  static constexpr int kRows = 6;
  using Floats = __m256;

  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats value) { _mm256_storeu_ps(to, value); }
  static Floats fma(float a, Floats b, Floats c) {
    return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
  }
  // Two rows a register, one in each 128-bit lane, then a 4 x 4 transpose inside the lanes.
  static void load_turned(const float* const* rows, int64_t column, Floats out[4]) {
    Floats row[4];
    for (int i = 0; i < 4; ++i) {
      row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + column)),
                                    _mm_loadu_ps(rows[4 + i] + column), 1);
    }
    const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(row[0], row[1]));
    const __m256d low23 = _mm256_castps_pd(_mm256_unpacklo_ps(row[2], row[3]));
    const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(row[0], row[1]));
    const __m256d high23 = _mm256_castps_pd(_mm256_unpackhi_ps(row[2], row[3]));
    out[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    out[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    out[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    out[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
  }
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

}  // namespace

const NqIsa kIsaAvx2 = {ConvertRows<Ymm>::to_float, ConvertRows<Ymm>::from_float,
                        Attend<Ymm, Panel<Ymm>, ConvertRows<Ymm>::to_float>::run};
