// SPDX-License-Identifier: Apache-2.0
//
// The matrix-matrix product by table lookup, written once over a vector type. The bits of several
// packed rows are transposed once for all rows of x, so that each lane holds one row's word, and
// every shifted set of indices serves kRows rows of x. It adds in the order of the matrix-vector
// product, so that a token's result does not depend on how many others are computed with it.
//
// V has what panel.h asks for, and: kGroups, lookups of a word; add; permute(table, index), which
// reads the low bits of each index; next(index), the next group's index.

#ifndef NQ_CPU_LOOKUP_PANEL_H
#define NQ_CPU_LOOKUP_PANEL_H

#include "cpu/isa.h"

namespace {

template <class V>
struct LookupPanel {
  static constexpr int kRows = 4;
  static constexpr int kBlocks = 4;
  static constexpr int kWidth = V::kLanes * kBlocks;
  static constexpr int kTile = 32;  // words transposed at a time
  static constexpr int kWordFloats = V::kGroups * V::kLanes;
  static_assert(kPanelRows % kWidth == 0, "a panel is a whole number of micro-panels");
  static_assert(kTile * kWidth <= kTileFloats, "the transposed words fit the scratch");

  // bits[w * kWidth + i] = word `first` + w of packed row i.
  static void transpose(const uint32_t* const* packed, int64_t first, int count, uint32_t* bits) {
    for (int b = 0; b < kBlocks; ++b) {
      const uint32_t* const* rows = packed + b * V::kLanes;
      uint32_t* out = bits + b * V::kLanes;
      int w = 0;
      for (; w + 4 <= count; w += 4) {
        typename V::Words block[4];
        V::load_block(rows, first + w, block);
        for (int i = 0; i < 4; ++i) V::store_words(out + (w + i) * kWidth, block[i]);
      }
      for (; w < count; ++w) {
        for (int i = 0; i < V::kLanes; ++i) out[w * kWidth + i] = rows[i][first + w];
      }
    }
  }

  template <int kHeight>
  static void micro(const uint32_t* bits, int count, const float* tables, int64_t stride,
                    float* out, bool first) {
    typename V::Floats sum[kHeight][kBlocks];
    for (int r = 0; r < kHeight; ++r) {
      for (int b = 0; b < kBlocks; ++b) {
        sum[r][b] = first ? V::zero() : V::load(out + r * kPanelRows + b * V::kLanes);
      }
    }
    for (int w = 0; w < count; ++w) {
      typename V::Words index[kBlocks];
      for (int b = 0; b < kBlocks; ++b) index[b] = V::load_words(bits + w * kWidth + b * V::kLanes);
      const float* table = tables + w * kWordFloats;
#pragma GCC unroll 11
      for (int group = 0; group < V::kGroups; ++group, table += V::kLanes) {
        for (int r = 0; r < kHeight; ++r) {
          const typename V::Floats entries = V::load(table + r * stride);
          for (int b = 0; b < kBlocks; ++b) {
            sum[r][b] = V::add(sum[r][b], V::permute(entries, index[b]));
          }
        }
        for (int b = 0; b < kBlocks; ++b) index[b] = V::next(index[b]);
      }
    }
    for (int r = 0; r < kHeight; ++r) {
      for (int b = 0; b < kBlocks; ++b) {
        V::store(out + r * kPanelRows + b * V::kLanes, sum[r][b]);
      }
    }
  }

  template <int kHeight>
  static void rows_of(int64_t height, const uint32_t* bits, int count, const float* tables,
                      int64_t stride, float* out, bool first) {
    if (height == kHeight) {
      micro<kHeight>(bits, count, tables, stride, out, first);
    } else if constexpr (kHeight > 1) {
      rows_of<kHeight - 1>(height, bits, count, tables, stride, out, first);
    }
  }

  // See NqIsa::lookup_panel.
  static void run(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables,
                  int64_t x_rows, float* out, float* scratch) {
    uint32_t* bits = reinterpret_cast<uint32_t*>(scratch);
    const int64_t stride = row_words * kWordFloats;
    for (int64_t part = 0; part < rows; part += kWidth) {
      // Rows past the last repeat it: their results are never read.
      const uint32_t* packed[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        packed[i] = words + (part + i < rows ? part + i : rows - 1) * row_words;
      }
      for (int64_t word = 0; word < row_words; word += kTile) {
        const int64_t left = row_words - word;
        const int count = left < kTile ? static_cast<int>(left) : kTile;
        transpose(packed, word, count, bits);
        for (int64_t row = 0; row < x_rows; row += kRows) {
          rows_of<kRows>(x_rows - row < kRows ? x_rows - row : kRows, bits, count,
                         tables + row * stride + word * kWordFloats, stride,
                         out + row * kPanelRows + part, word == 0);
        }
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_LOOKUP_PANEL_H
