// SPDX-License-Identifier: Apache-2.0
//
// Tables with AVX-512 (F, BW): a block is one register of 16-bit numbers.

#include <immintrin.h>

#include "cpu/table/product.h"

namespace {

struct Zmm {
  static constexpr int kVectors = 8;
  using Floats = __m512;
  using Words = __m512i;

  static Floats zero() { return _mm512_setzero_ps(); }
  static Words words8(const int8_t* from) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Words words4(const int8_t* from) {
    // The same sixteen bytes twice: their low halves are moved up and all are moved down.
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m512i both = _mm512_cvtepi8_epi16(_mm256_broadcastsi128_si256(bytes));
    const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(8), _mm256_set1_epi16(12), 0);
    const __m512i down = _mm512_inserti64x4(_mm512_set1_epi16(12), _mm256_set1_epi16(12), 0);
    return _mm512_srav_epi16(_mm512_sllv_epi16(both, up), down);
  }
  static Floats multiply(Words words, const int16_t* x, float weight, Floats c) {
    const __m512i sums = _mm512_madd_epi16(words, _mm512_loadu_si512(x));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(weight), c);
  }
  static float sum(Floats a, Floats b) { return _mm512_reduce_add_ps(_mm512_add_ps(a, b)); }
};

}  // namespace

const NqTableIsa kTableAvx512 = {TableProduct<Zmm, 8>::run, TableProduct<Zmm, 4>::run};
