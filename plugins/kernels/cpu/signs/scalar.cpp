// SPDX-License-Identifier: Apache-2.0
//
// Packed signs without vector instructions, the reference for the others: four neighbouring values
// of x have sixteen signed sums, in float32. These are computed once; after that, four bits of a
// packed row cost one load and one addition.

#include "cpu/signs/isa.h"

namespace {

constexpr int kWordFloats = 128;  // eight tables of sixteen

int64_t table_bytes(int64_t words) { return words * kWordFloats * 4; }

// Entry i of a table adds x[c] where bit c of i is 0 and subtracts it where it is 1.
void make_tables(const float* x, int64_t first, int64_t columns, int64_t, uint8_t* row) {
  float* out = reinterpret_cast<float*>(row) + first / 32 * kWordFloats;
  for (int64_t k = 0; k < columns; k += 4, out += 16) {
    for (int i = 0; i < 4; ++i) {
      const float low = (i & 1 ? -x[k] : x[k]) + (i & 2 ? -x[k + 1] : x[k + 1]);
      out[i] = low + (x[k + 2] + x[k + 3]);
      out[4 + i] = low + (x[k + 3] - x[k + 2]);
      out[8 + i] = low + (x[k + 2] - x[k + 3]);
      out[12 + i] = low - (x[k + 2] + x[k + 3]);
    }
  }
}

template <int kRows>
void some_rows(const uint32_t* words, int64_t row_words, const float* tables, float* out) {
  float even[kRows] = {};
  float odd[kRows] = {};
  for (int64_t w = 0; w < row_words; ++w, tables += kWordFloats) {
    for (int r = 0; r < kRows; ++r) {
      const uint32_t bits = words[r * row_words + w];
      for (int g = 0; g < 8; g += 2) {
        even[r] += tables[g * 16 + ((bits >> (4 * g)) & 15u)];
        odd[r] += tables[g * 16 + 16 + ((bits >> (4 * g + 4)) & 15u)];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = even[r] + odd[r];
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  const float* tables = reinterpret_cast<const float*>(p.tables);
  for (int64_t x_row = 0; x_row < p.x_rows; ++x_row, tables += p.row_words * kWordFloats) {
    float* out = p.out + x_row * kPanelRows;
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) {
      some_rows<4>(p.words + row * p.row_words, p.row_words, tables, out + row);
    }
    for (; row < p.rows; ++row) {
      some_rows<1>(p.words + row * p.row_words, p.row_words, tables, out + row);
    }
  }
}

}  // namespace

const NqSigns kSignsScalar = {table_bytes, make_tables, multiply};
