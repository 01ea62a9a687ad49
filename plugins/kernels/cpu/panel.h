// SPDX-License-Identifier: Apache-2.0
//
// The matrix-matrix product (many rows of x), written once over a vector type. A tile of signs is
// expanded to +-1.0 floats, column by column, and then used by every row of x: the expansion is
// paid once per NQ_PASS_ROWS rows, and the rest is a register-blocked outer product of fused
// multiply-adds.
//
// V is a type with: kLanes; kVectors, how many of them a micro-kernel keeps side by side;
// kRows, how many rows of x it takes at most; Floats, Words; zero, load, store, fma(a scalar, b,
// c), load_words, sign_one (1.0f carrying the top bit of each word), shift_up (each word left by
// one).

#ifndef NQ_CPU_PANEL_H
#define NQ_CPU_PANEL_H

#include "cpu/isa.h"

namespace {

template <class V>
struct Panel {
  static constexpr int kWidth = V::kLanes * V::kVectors;  // packed rows of one micro-kernel
  static_assert(kPanelRows % kWidth == 0, "a panel is a whole number of micro-panels");

  // tile[column][i] = sign of packed row i, for `count` words from `word` on.
  static void expand(const uint32_t* const* packed, int64_t word, int count, float* tile) {
    typename V::Words block[V::kVectors][kTileWords];
    for (int v = 0; v < V::kVectors; ++v) {
      const uint32_t* const* rows = packed + v * V::kLanes;
      if (count == kTileWords) {
        V::load_block(rows, word, block[v]);
        continue;
      }
      for (int w = 0; w < count; ++w) {
        alignas(64) uint32_t lanes[V::kLanes];
        for (int i = 0; i < V::kLanes; ++i) lanes[i] = rows[i][word + w];
        block[v][w] = V::load_words(lanes);
      }
    }
    for (int w = 0; w < count; ++w) {
      // A copy that the compiler can keep in registers: several shift chains side by side.
      typename V::Words bits[V::kVectors];
      for (int v = 0; v < V::kVectors; ++v) bits[v] = block[v][w];
      for (int column = 31; column >= 0; --column) {
        float* out = tile + (w * 32 + column) * kWidth;
        for (int v = 0; v < V::kVectors; ++v) {
          V::store(out + v * V::kLanes, V::sign_one(bits[v]));
          bits[v] = V::shift_up(bits[v]);
        }
      }
    }
  }

  template <int kRows>
  static void micro(const float* x, int64_t stride, int columns, const float* tile, int64_t pitch,
                    float* out, bool first) {
    typename V::Floats sum[kRows][V::kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < V::kVectors; ++v) {
        sum[r][v] = first ? V::zero() : V::load(out + r * kPanelRows + v * V::kLanes);
      }
    }
    for (int k = 0; k < columns; ++k) {
      typename V::Floats signs[V::kVectors];
      for (int v = 0; v < V::kVectors; ++v) signs[v] = V::load(tile + k * pitch + v * V::kLanes);
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < V::kVectors; ++v) {
          sum[r][v] = V::fma(x[r * stride + k], signs[v], sum[r][v]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < V::kVectors; ++v) {
        V::store(out + r * kPanelRows + v * V::kLanes, sum[r][v]);
      }
    }
  }

  // Rows of x in groups of nearly equal height: a lone last row would wait on its own adds.
  template <int kRows>
  static void rows_of(int64_t height, const float* x, int64_t stride, int columns,
                      const float* tile, int64_t pitch, float* out, bool first) {
    if (height == kRows) {
      micro<kRows>(x, stride, columns, tile, pitch, out, first);
    } else if constexpr (kRows > 1) {
      rows_of<kRows - 1>(height, x, stride, columns, tile, pitch, out, first);
    }
  }

  // out[row * kPanelRows + i] (+)= sum over k < columns of x[row][k] * tile[k * pitch + i], for
  // kWidth values of i; `first` overwrites what is there.
  static void multiply(const float* x, int64_t stride, int64_t x_rows, int columns,
                       const float* tile, int64_t pitch, float* out, bool first) {
    const int64_t groups = (x_rows + V::kRows - 1) / V::kRows;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = x_rows * group / groups;
      const int64_t end = x_rows * (group + 1) / groups;
      rows_of<V::kRows>(end - begin, x + begin * stride, stride, columns, tile, pitch,
                        out + begin * kPanelRows, first);
    }
  }

  static void run(const uint32_t* words, int64_t row_words, int64_t rows, const float* x,
                  int64_t stride, int64_t x_rows, float* out, float* tile) {
    for (int64_t part = 0; part < rows; part += kWidth) {
      // Rows past the last repeat it: their results are never read.
      const uint32_t* packed[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        packed[i] = words + (part + i < rows ? part + i : rows - 1) * row_words;
      }
      for (int64_t word = 0; word < row_words; word += kTileWords) {
        const int64_t left = row_words - word;
        const int count = left < kTileWords ? static_cast<int>(left) : kTileWords;
        expand(packed, word, count, tile);
        multiply(x + word * 32, stride, x_rows, count * 32, tile, kWidth, out + part, word == 0);
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_PANEL_H
