// SPDX-License-Identifier: Apache-2.0
//
// Packed signs with AVX2 (and FMA): tables of bytes, 32 lookups an instruction.

#include <immintrin.h>

#include "cpu/signs/byte_panel.h"

namespace {

// Two tables side by side, one in each 128-bit lane.
struct YmmTables {
  static constexpr int kTables = 2;
  using Floats = __m256;

  static Floats quads(const float* x, int half, int part) {
    const float* from = x + part * 16 + half * 4;
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 8),
                                1);
  }
  template <int i>
  static Floats each(Floats q) {
    return _mm256_permute_ps(q, i * 0x55);
  }
  static Floats signed0(Floats a) {
    return _mm256_mul_ps(a, _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1));
  }
  static Floats signed1(Floats a, Floats b) {
    return _mm256_fmadd_ps(a, _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), b);
  }
  static Floats scaled(Floats a, float b) { return _mm256_mul_ps(a, _mm256_set1_ps(b)); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static void put(Floats a, Floats b, Floats c, Floats d, uint8_t* low, uint8_t* high) {
    const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i byte = _mm256_set1_epi16(0xff);
    const __m256i lows =
        _mm256_packus_epi16(_mm256_and_si256(first, byte), _mm256_and_si256(second, byte));
    const __m256i highs =
        _mm256_packus_epi16(_mm256_srli_epi16(first, 8), _mm256_srli_epi16(second, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), lows);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high),
                        _mm256_xor_si256(highs, _mm256_set1_epi8(static_cast<char>(0x80))));
  }
  static float largest(const float* x, int64_t columns) {
    // Magnitudes are compared as integers: so compared, infinity and not-a-number are the largest.
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256i most = _mm256_setzero_si256();
    for (int64_t c = 0; c < columns; c += 8) {
      __m256 sum = _mm256_andnot_ps(sign, _mm256_loadu_ps(x + c));
      sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 0xb1));
      sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 0x4e));
      most = _mm256_max_epi32(most, _mm256_castps_si256(sum));
    }
    const __m128i four =
        _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    return _mm_cvtss_f32(_mm_castsi128_ps(four));
  }
};

struct Ymm {
  static constexpr int kRows = 32;
  using Bytes = __m256i;

  // Rows stand in an order that finish() brings back to the natural one: it widens the even bytes
  // of a lane, then the odd ones, and of each the lower four, then the upper four.
  static constexpr int row_of(int i) {
    const int lane = i / 16, byte = i % 16;
    return byte % 2 * 16 + byte / 8 * 8 + lane * 4 + byte / 2 % 4;
  }
  static Bytes load(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Bytes table(const uint8_t* from) { return _mm256_broadcastsi128_si256(sixteen(from)); }
  static __m128i sixteen(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  static Bytes look_up(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
  static Bytes low_half(Bytes bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
  static Bytes high_half(Bytes bytes) { return low_half(_mm256_srli_epi16(bytes, 4)); }

  // Sums of bytes in 16-bit lanes. `both` gets even bytes plus 256 times odd ones, modulo 2^16, and
  // `odd` the odd ones alone, from which the even ones follow.
  struct Sums {
    __m256i both, odd;
    void add(Bytes bytes) {
      both = _mm256_add_epi16(both, bytes);
      odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
      // A compiler that adds several lookups to each other first runs out of registers.
      __asm__("" : "+x"(both), "+x"(odd));
    }
    __m256i even() const { return _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8)); }
  };
  struct Planes {
    Sums low, high;
    void start(int lookups) {
      low.both = low.odd = _mm256_setzero_si256();
      // The bias of a byte is 128: that of an even one and of an odd one together are 128 * 257.
      high.both = _mm256_set1_epi16(static_cast<short>(-lookups * 128 * 257));
      high.odd = _mm256_set1_epi16(static_cast<short>(-lookups * 128));
    }
    void add(Bytes lows, Bytes highs) {
      low.add(lows);
      high.add(highs);
    }
    void finish(float scale, float* out) const {
      put(low.even(), high.even(), scale, out);
      put(low.odd, high.odd, scale, out + 16);
    }
    static void put(__m256i lows, __m256i highs, float scale, float* out) {
      add_floats(_mm256_unpacklo_epi16(lows, highs), scale, out);
      add_floats(_mm256_unpackhi_epi16(lows, highs), scale, out + 8);
    }
    // Each pair is a low sum and a high one.
    static void add_floats(__m256i pairs, float scale, float* out) {
      const __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi32(256 << 16 | 1));
      _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale),
                                            _mm256_loadu_ps(out)));
    }
  };
};

}  // namespace

const NqSigns kSignsAvx2 = {BytePanel<Ymm>::arrange, byte_table_bytes, ByteTables<YmmTables>::make,
                            BytePanel<Ymm>::multiply};
