// SPDX-License-Identifier: Apache-2.0
//
// Tables in plain C++: the reference for the others and the last resort on any processor.

#include "cpu/table/product.h"

namespace {

struct Plain {
  static constexpr int kSingleRows = 1;
  static constexpr int kTableRows = 1;
  static constexpr int kVectors = 2;
  struct Floats {
    float v[16];
  };

  static Floats zero() { return Floats{}; }
  static Floats load(const float* from) {
    Floats out;
    memcpy(out.v, from, sizeof out.v);
    return out;
  }
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b.v[i];
    return c;
  }
  static Floats scaled(const Floats& a, float b, Floats c) {
    for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b;
    return c;
  }
  static float sum(Floats value) {
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) value.v[i] += value.v[i + half];
    }
    return value.v[0];
  }
  static Floats codes8(const int8_t* from) {
    Floats out;
    for (int i = 0; i < 16; ++i) out.v[i] = static_cast<float>(from[i]);
    return out;
  }
  static void codes4(const int8_t* from, Floats* low, Floats* high) {
    for (int i = 0; i < 16; ++i) {
      low->v[i] = static_cast<float>(((from[i] & 15) ^ 8) - 8);
      high->v[i] = static_cast<float>(from[i] >> 4);
    }
  }
};

}  // namespace

const NqTableIsa kTableScalar = {TableProduct<Plain, 8>::run, TableProduct<Plain, 4>::run};
