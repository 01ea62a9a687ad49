// SPDX-License-Identifier: Apache-2.0
//
// The matrix-vector product by table lookup, without vector instructions. Four neighbouring values
// of x have sixteen signed sums. These are computed once; after that, four bits of a packed row
// cost one load and one addition (lookup tables for low-bit products: T-MAC, arXiv 2407.00088).

#ifndef NQ_CPU_LOOKUP_H
#define NQ_CPU_LOOKUP_H

#include <stdint.h>

namespace {

// Floats of tables for one word: eight groups of four columns.
constexpr int kNibbleFloats = 128;

// Tables of `columns` values, a multiple of 32: entry i of a group adds x[c] where bit c of i is 0
// and subtracts it where it is 1.
inline void nibble_tables(const float* x, int64_t columns, float* out) {
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
inline void nibble_rows(const uint32_t* words, int64_t row_words, const float* tables, float* out) {
  float even[kRows] = {};
  float odd[kRows] = {};
  for (int64_t w = 0; w < row_words; ++w, tables += kNibbleFloats) {
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

inline void nibble_gemv(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables,
                        float* out) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    nibble_rows<4>(words + row * row_words, row_words, tables, out + row);
  }
  for (; row < rows; ++row) nibble_rows<1>(words + row * row_words, row_words, tables, out + row);
}

}  // namespace

#endif  // NQ_CPU_LOOKUP_H
