// SPDX-License-Identifier: Apache-2.0
//
// The matrix-matrix product of attention, written once over a vector type: a register-blocked outer
// product of fused multiply-adds.
//
// V is a type with: kLanes; kVectors, how many of them a micro-kernel keeps side by side; kRows,
// how many rows of x it takes at most; Floats; zero, load, store, fma(a scalar, b, c).

#ifndef NQ_CPU_PANEL_H
#define NQ_CPU_PANEL_H

#include "cpu/isa.h"

namespace {

template <class V>
struct Panel {
  static constexpr int kWidth = V::kLanes * V::kVectors;  // columns of one micro-kernel
  static_assert(kPanelRows % kWidth == 0, "a panel is a whole number of micro-panels");

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
      typename V::Floats b[V::kVectors];
      for (int v = 0; v < V::kVectors; ++v) b[v] = V::load(tile + k * pitch + v * V::kLanes);
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < V::kVectors; ++v) {
          sum[r][v] = V::fma(x[r * stride + k], b[v], sum[r][v]);
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
};

}  // namespace

#endif  // NQ_CPU_PANEL_H
