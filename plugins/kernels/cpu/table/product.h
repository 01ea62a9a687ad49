// SPDX-License-Identifier: Apache-2.0
//
// The product of quantized rows with vectors in 16-bit fixed point, written once over a vector
// type. Products of a block are added as integers, in lanes; lanes become floats block by block,
// and are added to each other at the end. A result does not depend on the other vectors.
//
// V has: kVectors, how many vectors share a row's decoded codes at most; Words, 32 numbers of 16
// bits; words8 (32 bytes) and words4 (16 bytes: the low halves, then the high ones); Floats, the
// lanes; zero; multiply(words, x, weight, c), lanes of products, summed as integers, times
// `weight`, plus c; sum, of two registers of lanes.

#ifndef NQ_CPU_TABLE_PRODUCT_H
#define NQ_CPU_TABLE_PRODUCT_H

#include <string.h>

#include "cpu/table/isa.h"
#include "nq_table.h"

namespace {

template <class V, int kBits>
struct TableProduct {
  using Floats = typename V::Floats;
  static constexpr int kBlockBytes = NQ_TABLE_BLOCK * kBits / 8;
  static constexpr int kChunk = 256;  // blocks whose weights are computed at a time; even

  // Blocks of some vectors, and what their sums of integers are worth.
  template <int kVectors>
  struct Part {
    const int16_t* x;
    int64_t x_stride;
    const float* weights[kVectors];
    Floats sums[2][kVectors];  // of even and odd blocks, which do not wait for each other

    void add(const int8_t* codes, int64_t block, Floats (&sum)[kVectors]) {
      typename V::Words words;
      if constexpr (kBits == 8) {
        words = V::words8(codes);
      } else {
        words = V::words4(codes);
      }
      for (int v = 0; v < kVectors; ++v) {
        sum[v] = V::multiply(words, x + v * x_stride + block * NQ_TABLE_BLOCK, weights[v][block],
                             sum[v]);
      }
    }

    // Adds blocks [0, count) of the codes.
    void add_all(const int8_t* codes, int64_t count) {
      int64_t b = 0;
      for (; b + 2 <= count; b += 2) {
        add(codes + b * kBlockBytes, b, sums[0]);
        add(codes + (b + 1) * kBlockBytes, b + 1, sums[1]);
      }
      if (b < count) add(codes + b * kBlockBytes, b, sums[0]);
    }
  };

  // One row times kVectors vectors. A row is read from its begin to its end and then the next one:
  // rows read side by side, or with a prefetch of our own, come at less than half of that rate.
  template <int kVectors>
  static void one_row(const TableStrip& strip, int64_t row, const TableVectors& x, int64_t vector,
                      float* out, int64_t stride) {
    const int64_t blocks = (strip.columns + NQ_TABLE_BLOCK - 1) / NQ_TABLE_BLOCK;
    const int64_t whole = strip.columns / NQ_TABLE_BLOCK;
    const int8_t* codes = strip.codes + row * strip.row_bytes;
    const float* scales = strip.scales + row * strip.groups;
    const float* units = x.units + vector * blocks;
    Part<kVectors> part;
    part.x = x.values + vector * blocks * NQ_TABLE_BLOCK;
    part.x_stride = blocks * NQ_TABLE_BLOCK;
    for (int v = 0; v < kVectors; ++v) part.sums[0][v] = part.sums[1][v] = V::zero();
    float products[kVectors][kChunk];
    for (int64_t first = 0; first < blocks; first += kChunk) {
      const int64_t count = blocks - first < kChunk ? blocks - first : kChunk;
      for (int v = 0; v < kVectors; ++v) {
        part.weights[v] = units + v * blocks + first;
        if (strip.groups == 1) continue;
        weigh(strip, scales, first, count, part.weights[v], products[v]);
        part.weights[v] = products[v];
      }
      const int64_t here = whole - first < count ? whole - first : count;
      part.add_all(codes + first * kBlockBytes, here);
      if (here < count) {  // the last, short block: nothing past the row may be read
        alignas(64) int8_t tail[kBlockBytes] = {};
        memcpy(tail, codes + whole * kBlockBytes,
               static_cast<size_t>(strip.row_bytes - whole * kBlockBytes));
        part.add(tail, here, part.sums[1]);
      }
      part.x += kChunk * NQ_TABLE_BLOCK;
    }
    for (int v = 0; v < kVectors; ++v) {
      const float sum = V::sum(part.sums[0][v], part.sums[1][v]);
      out[(vector + v) * stride + row] = strip.groups == 1 ? sum * scales[0] : sum;
    }
  }

  // products[b] = unit of block `first` + b times the scale of its group.
  static void weigh(const TableStrip& strip, const float* scales, int64_t first, int64_t count,
                    const float* units, float* products) {
    const int64_t in_group = strip.group_columns / NQ_TABLE_BLOCK;
    if (in_group == 1) {
      for (int64_t b = 0; b < count; ++b) products[b] = units[b] * scales[first + b];
      return;
    }
    int64_t group = first / in_group;
    int64_t left = (group + 1) * in_group - first;
    for (int64_t b = 0; b < count; ++b) {
      products[b] = units[b] * scales[group];
      if (--left == 0) {
        ++group;
        left = in_group;
      }
    }
  }

  // `count` vectors, kVectors at most, in one pass over the strip.
  template <int kVectors>
  static void some_vectors(const TableStrip& strip, int64_t count, const TableVectors& x,
                           int64_t vector, float* out, int64_t stride) {
    if (count == kVectors) {
      for (int64_t row = 0; row < strip.rows; ++row) {
        one_row<kVectors>(strip, row, x, vector, out, stride);
      }
    } else if constexpr (kVectors > 1) {
      some_vectors<kVectors - 1>(strip, count, x, vector, out, stride);
    }
  }

  static void run(const TableStrip& strip, const TableVectors& x, float* out, int64_t stride) {
    for (int64_t v = 0; v < x.rows; v += V::kVectors) {
      const int64_t count = x.rows - v < V::kVectors ? x.rows - v : V::kVectors;
      some_vectors<V::kVectors>(strip, count, x, v, out, stride);
    }
  }
};

}  // namespace

#endif  // NQ_CPU_TABLE_PRODUCT_H
