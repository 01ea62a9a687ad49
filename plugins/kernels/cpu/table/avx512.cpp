// SPDX-License-Identifier: Apache-2.0
//
// Tables with AVX-512: bytes widened to floats; 4-bit codes through a 16-entry permutation.

#include <immintrin.h>

#include "cpu/table/product.h"

namespace {

struct Zmm {
  static constexpr int kSingleRows = 4;
  static constexpr int kTableRows = 2;
  static constexpr int kVectors = 8;
  using Floats = __m512;

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats scaled(Floats a, float b, Floats c) {
    return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c);
  }
  static float sum(Floats value) { return _mm512_reduce_add_ps(value); }
  static __m128i bytes(const int8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static Floats codes8(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(from)));
  }
  static void codes4(const int8_t* from, Floats* low, Floats* high) {
    // The permutation reads the lowest four bits of each lane only.
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const __m512i wide = _mm512_cvtepu8_epi32(bytes(from));
    *low = _mm512_permutexvar_ps(wide, values);
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), values);
  }
};

}  // namespace

const NqTableIsa kTableAvx512 = {TableProduct<Zmm, 8>::run, TableProduct<Zmm, 4>::run};
