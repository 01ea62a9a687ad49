// SPDX-License-Identifier: Apache-2.0
//
// float16 conversions by hand (IEEE 754 binary16, to nearest even), so that no compiler support is
// needed.

#include <cmath>
#include <cstdint>
#include <cstring>

float nq_emulated_half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa != 0 ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return bits & 0x8000 ? -value : value;
}

uint16_t nq_emulated_float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (value != value) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-5f)
    return sign | static_cast<uint16_t>(std::nearbyint(size * 16777216.0f));
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  // 11 bits of mantissa, the leading one included; a carry moves on to the exponent by itself.
  const int rounded = static_cast<int>(std::nearbyint(fraction * 2048.0f));
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + rounded);
}
