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

  // Block `block` of a row times the same block of every vector, added to `sum`.
  template <int kVectors>
  static void add(const int8_t* codes, const int16_t* x, int64_t x_stride, const float* weights,
                  int64_t pitch, Floats (&sum)[kVectors]) {
    typename V::Words words;
    if constexpr (kBits == 8) {
      words = V::words8(codes);
    } else {
      words = V::words4(codes);
    }
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = V::multiply(words, x + v * x_stride, weights[v * pitch], sum[v]);
    }
  }

  // The strip's rows times kVectors vectors. A row is read from its begin to its end and then the
  // next one: rows read side by side, or with a prefetch of our own, come at less than half of that
  // rate. Sums of even and odd blocks do not wait for each other.
  template <int kVectors>
  static void rows_of(const TableStrip& strip, const TableVectors& vectors, int64_t vector,
                      float* out, int64_t stride) {
    const int64_t blocks = (strip.columns + NQ_TABLE_BLOCK - 1) / NQ_TABLE_BLOCK;
    const int64_t whole = strip.columns / NQ_TABLE_BLOCK;
    const int64_t x_stride = blocks * NQ_TABLE_BLOCK;
    const int16_t* x = vectors.values + vector * x_stride;
    const float* units = vectors.units + vector * blocks;
    const bool grouped = strip.groups != 1;
    float products[kVectors * kChunk];
    for (int64_t row = 0; row < strip.rows; ++row) {
      const int8_t* codes = strip.codes + row * strip.row_bytes;
      const float* scales = strip.scales + row * strip.groups;
      Floats even[kVectors];
      Floats odd[kVectors];
      for (int v = 0; v < kVectors; ++v) even[v] = odd[v] = V::zero();
      for (int64_t first = 0; first < blocks; first += kChunk) {
        const int64_t count = blocks - first < kChunk ? blocks - first : kChunk;
        const float* weights = units + first;
        int64_t pitch = blocks;
        if (grouped) {
          for (int v = 0; v < kVectors; ++v) {
            weigh(strip, scales, first, count, weights + v * blocks, products + v * kChunk);
          }
          weights = products;
          pitch = kChunk;
        }
        const int64_t here = whole - first < count ? whole - first : count;
        const int8_t* from = codes + first * kBlockBytes;
        const int16_t* with = x + first * NQ_TABLE_BLOCK;
        int64_t b = 0;
        for (; b + 2 <= here; b += 2) {
          add<kVectors>(from + b * kBlockBytes, with + b * NQ_TABLE_BLOCK, x_stride, weights + b,
                        pitch, even);
          add<kVectors>(from + (b + 1) * kBlockBytes, with + (b + 1) * NQ_TABLE_BLOCK, x_stride,
                        weights + b + 1, pitch, odd);
        }
        if (b < here) {
          add<kVectors>(from + b * kBlockBytes, with + b * NQ_TABLE_BLOCK, x_stride, weights + b,
                        pitch, even);
        }
        if (here < count) {  // the last, short block: nothing past the row may be read
          alignas(64) int8_t tail[kBlockBytes] = {};
          memcpy(tail, codes + whole * kBlockBytes,
                 static_cast<size_t>(strip.row_bytes - whole * kBlockBytes));
          add<kVectors>(tail, with + here * NQ_TABLE_BLOCK, x_stride, weights + here, pitch, odd);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        const float sum = V::sum(even[v], odd[v]);
        out[(vector + v) * stride + row] = grouped ? sum : sum * scales[0];
      }
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
      rows_of<kVectors>(strip, x, vector, out, stride);
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
