// SPDX-License-Identifier: Apache-2.0
//
// The product of quantized rows with vectors, written once over a vector type of 16 floats.
//
// V has: Floats; kTableRows and kVectors, how many table rows and vectors a micro-kernel takes
// besides the one-vector case; zero, load, fma(a, b, c), scaled(a, scalar, c) = a * scalar + c,
// sum; codes8 (16 bytes to floats) and codes4 (16 bytes to the floats of their low and high
// halves).

#ifndef NQ_CPU_TABLE_PRODUCT_H
#define NQ_CPU_TABLE_PRODUCT_H

#include <string.h>

#include "cpu/table/isa.h"
#include "nq_table.h"

namespace {

template <class V, int kBits>
struct TableProduct {
  using Floats = typename V::Floats;
  // Bytes that are prefetched with the first vectors, which bring the strip from memory: the
  // hardware's prefetchers stop at every page. Beside busy cores, a product with a table of 8 bits
  // takes 1.3 to 3 ms instead of 6.
  static constexpr int kAhead = 10240;
  static constexpr int kBlockBytes = NQ_TABLE_BLOCK * kBits / 8;

  static void decode(const int8_t* codes, Floats* low, Floats* high) {
    if constexpr (kBits == 8) {
      *low = V::codes8(codes);
      *high = V::codes8(codes + 16);
    } else {
      V::codes4(codes, low, high);
    }
  }

  // part[t][v] += block of row t times block of vector v.
  template <int kRows, int kVectors>
  static void block(const int8_t* const* codes, const float* x, int64_t x_stride,
                    Floats (&part)[kRows][kVectors]) {
    for (int t = 0; t < kRows; ++t) {
      Floats low;
      Floats high;
      decode(codes[t], &low, &high);
      for (int v = 0; v < kVectors; ++v) {
        part[t][v] = V::fma(low, V::load(x + v * x_stride), part[t][v]);
        part[t][v] = V::fma(high, V::load(x + v * x_stride + 16), part[t][v]);
      }
    }
  }

  template <int kRows, int kVectors, bool kGrouped>
  static void micro(const TableStrip& strip, int64_t row, const float* x, int64_t x_stride,
                    float* out, int64_t stride, bool fetch) {
    const int8_t* first[kRows];
    for (int t = 0; t < kRows; ++t) first[t] = strip.codes + (row + t) * strip.row_bytes;
    Floats total[kRows][kVectors];
    Floats part[kRows][kVectors];
    for (int t = 0; t < kRows; ++t) {
      for (int v = 0; v < kVectors; ++v) total[t][v] = part[t][v] = V::zero();
    }
    const float* scales = strip.scales + row * strip.groups;
    const int64_t whole = strip.columns / NQ_TABLE_BLOCK;
    const int64_t blocks = (strip.columns + NQ_TABLE_BLOCK - 1) / NQ_TABLE_BLOCK;
    const int64_t in_group = kGrouped ? strip.group_columns / NQ_TABLE_BLOCK : blocks;
    int64_t left = in_group;
    int64_t group = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      if (fetch && b * kBlockBytes % 64 == 0) {
        for (int t = 0; t < kRows; ++t) __builtin_prefetch(first[t] + b * kBlockBytes + kAhead);
      }
      const int8_t* codes[kRows];
      alignas(64) int8_t tail[kRows][kBlockBytes];
      for (int t = 0; t < kRows; ++t) {
        codes[t] = first[t] + b * kBlockBytes;
        if (b >= whole) {  // the last, short block: nothing past the row may be read
          memset(tail[t], 0, sizeof tail[t]);
          memcpy(tail[t], codes[t], static_cast<size_t>(strip.row_bytes - b * kBlockBytes));
          codes[t] = tail[t];
        }
      }
      block<kRows, kVectors>(codes, x + b * NQ_TABLE_BLOCK, x_stride, part);
      if (kGrouped && (--left == 0 || b + 1 == blocks)) {
        for (int t = 0; t < kRows; ++t) {
          for (int v = 0; v < kVectors; ++v) {
            total[t][v] = V::scaled(part[t][v], scales[t * strip.groups + group], total[t][v]);
            part[t][v] = V::zero();
          }
        }
        ++group;
        left = in_group;
      }
    }
    for (int t = 0; t < kRows; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        out[v * stride + row + t] = kGrouped ? V::sum(total[t][v]) : V::sum(part[t][v]) * scales[t];
      }
    }
  }

  template <int kRows, int kVectors>
  static void rows_of(const TableStrip& strip, const float* x, int64_t x_stride, float* out,
                      int64_t stride, bool fetch) {
    const bool grouped = strip.groups > 1;
    int64_t row = 0;
    for (; row + kRows <= strip.rows; row += kRows) {
      if (grouped) {
        micro<kRows, kVectors, true>(strip, row, x, x_stride, out, stride, fetch);
      } else {
        micro<kRows, kVectors, false>(strip, row, x, x_stride, out, stride, fetch);
      }
    }
    for (; row < strip.rows; ++row) {
      if (grouped) {
        micro<1, kVectors, true>(strip, row, x, x_stride, out, stride, fetch);
      } else {
        micro<1, kVectors, false>(strip, row, x, x_stride, out, stride, fetch);
      }
    }
  }

  // `count` vectors, kVectors at most, in one pass over the strip.
  template <int kVectors>
  static void some_vectors(const TableStrip& strip, int64_t count, const float* x, int64_t x_stride,
                           float* out, int64_t stride, bool fetch) {
    if (count == kVectors) {
      constexpr int kRows = kVectors == 1 ? V::kSingleRows : V::kTableRows;
      rows_of<kRows, kVectors>(strip, x, x_stride, out, stride, fetch);
    } else if constexpr (kVectors > 1) {
      some_vectors<kVectors - 1>(strip, count, x, x_stride, out, stride, fetch);
    }
  }

  static void run(const TableStrip& strip, const float* x, int64_t x_stride, int64_t x_rows,
                  float* out, int64_t stride) {
    for (int64_t v = 0; v < x_rows; v += V::kVectors) {
      const int64_t count = x_rows - v < V::kVectors ? x_rows - v : V::kVectors;
      some_vectors<V::kVectors>(strip, count, x + v * x_stride, x_stride, out + v * stride, stride,
                                v == 0);
    }
  }
};

}  // namespace

#endif  // NQ_CPU_TABLE_PRODUCT_H
