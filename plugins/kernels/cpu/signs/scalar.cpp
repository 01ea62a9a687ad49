// SPDX-License-Identifier: Apache-2.0
//
// Packed signs without vector instructions, the reference for the others: four neighbouring values
// of x have sixteen signed sums, in float32. These are computed once; after that, four bits of a
// packed row cost one load and one addition.

#include "cpu/signs/words16.h"

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

// Four rows, whose words are kTileRows apart.
void four_rows(const uint32_t* words, int64_t row_words, const float* tables, float* out) {
  constexpr int kRows = 4;
  float even[kRows] = {};
  float odd[kRows] = {};
  for (int64_t w = 0; w < row_words; ++w, tables += kWordFloats, words += kTileRows) {
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < 8; g += 2) {
        even[r] += tables[g * 16 + ((words[r] >> (4 * g)) & 15u)];
        odd[r] += tables[g * 16 + 16 + ((words[r] >> (4 * g + 4)) & 15u)];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) out[r] = even[r] + odd[r];
}

// See NqSigns::multiply.
void multiply(const SignProduct& p) {
  const float* tables = reinterpret_cast<const float*>(p.tables);
  for (int64_t x_row = 0; x_row < p.x_rows; ++x_row, tables += p.row_words * kWordFloats) {
    for (int64_t row = 0; row < p.rows; row += 4) {
      const int64_t tile = row / kTileRows * kTileRows;
      four_rows(p.words + tile * p.row_words + row % kTileRows, p.row_words, tables,
                p.out + x_row * kPanelRows + row);
    }
  }
}

}  // namespace

const NqSigns kSignsScalar = {arrange_words16, table_bytes, make_tables, multiply};
