// SPDX-License-Identifier: Apache-2.0
//
// Tables in plain C++: the reference for the others and the last resort on any processor.

#include "cpu/table/product.h"

namespace {

struct Plain {
  static constexpr int kVectors = 2;
  struct Floats {
    float v[4];
  };
  struct Words {
    int16_t v[NQ_TABLE_BLOCK];
  };

  static Floats zero() { return Floats{}; }
  static Words words8(const int8_t* from) {
    Words out;
    for (int i = 0; i < NQ_TABLE_BLOCK; ++i) out.v[i] = from[i];
    return out;
  }
  static Words words4(const int8_t* from) {
    Words out;
    for (int i = 0; i < 16; ++i) {
      out.v[i] = static_cast<int16_t>(((from[i] & 15) ^ 8) - 8);
      out.v[16 + i] = static_cast<int16_t>(from[i] >> 4);
    }
    return out;
  }
  static Floats multiply(const Words& words, const int16_t* x, float weight, Floats c) {
    int32_t sums[4] = {};
    for (int i = 0; i < NQ_TABLE_BLOCK; ++i) sums[i % 4] += int32_t{words.v[i]} * x[i];
    for (int i = 0; i < 4; ++i) c.v[i] += static_cast<float>(sums[i]) * weight;
    return c;
  }
  static float sum(const Floats& a, const Floats& b) {
    return ((a.v[0] + b.v[0]) + (a.v[2] + b.v[2])) + ((a.v[1] + b.v[1]) + (a.v[3] + b.v[3]));
  }
};

}  // namespace

const NqTableIsa kTableScalar = {TableProduct<Plain, 8>::run, TableProduct<Plain, 4>::run};
