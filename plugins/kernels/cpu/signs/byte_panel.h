// SPDX-License-Identifier: Apache-2.0
//
// Products by tables of bytes (byte_tables.h) where one register holds one table, written once over
// a vector type. Packed rows are arranged in tiles of V::kRows: byte by byte, the byte of each row,
// so that a register holds the same columns of many rows, and every half byte of it is an index.
//
// V has: Bytes; kRows, bytes of a register; row_of(i), the row whose byte stands i-th in one; load;
// low_half, high_half; table(from), sixteen bytes for every lane; look_up(table, index); Planes,
// sums of looked-up bytes, with start(lookups), which takes their biases away, add(low, high), and
// finish(scale, out), which adds the sums in units of `scale` to kRows floats.

#ifndef NQ_CPU_SIGNS_BYTE_PANEL_H
#define NQ_CPU_SIGNS_BYTE_PANEL_H

#include <string.h>

#include "cpu/signs/byte_tables.h"
#include "cpu/signs/isa.h"

namespace {

template <class V>
struct BytePanel {
  using Bytes = typename V::Bytes;
  static_assert(kBlockRows % V::kRows == 0, "a block is a whole number of tiles");

  // See NqSigns::arrange.
  static void arrange(const uint32_t* words, int64_t row_words, int64_t rows, uint32_t* out) {
    for (int64_t tile = 0; tile < rows; tile += kBlockRows) {
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const int64_t first = tile + i / V::kRows * V::kRows;
        const int64_t row = first + V::row_of(static_cast<int>(i % V::kRows));
        const uint8_t* from = reinterpret_cast<const uint8_t*>(words + row * row_words);
        uint8_t* to = reinterpret_cast<uint8_t*>(out + first * row_words) + i % V::kRows;
        for (int64_t k = 0; k < row_words * 4; ++k) to[k * V::kRows] = row < rows ? from[k] : 0;
      }
    }
  }

  // kHeight rows of x times kTiles tiles.
  template <int kHeight, int kTiles>
  static void micro(const uint8_t* bits, int64_t row_words, const uint8_t* tables, float* out) {
    const int64_t stride = byte_table_bytes(row_words);
    const int64_t tile = row_words * 4 * V::kRows;
    const uint8_t* scales = tables + row_words * kWordBytes;
    for (int r = 0; r < kHeight; ++r) {
      memset(out + r * kPanelRows, 0, kTiles * V::kRows * sizeof(float));
    }
    for (int64_t word = 0; word < row_words; word += kGroupWords, scales += sizeof(float)) {
      const int words = row_words - word < kGroupWords ? 1 : kGroupWords;
      typename V::Planes planes[kHeight][kTiles];
      for (int r = 0; r < kHeight; ++r) {
        for (int t = 0; t < kTiles; ++t) planes[r][t].start(words * kWordLookups);
      }
      for (int w = 0; w < words; ++w, tables += kWordBytes) {
        for (int byte = 0; byte < 4; ++byte, bits += V::kRows) {
          Bytes halves[2][kTiles];
          for (int t = 0; t < kTiles; ++t) {
            // Every token reads the weights from memory once, and the processor's own prefetchers
            // stop at every page.
            const uint8_t* from = bits + t * tile;
            if (kHeight == 1) __builtin_prefetch(from + kPanelRows * row_words * 4);
            const Bytes both = V::load(from);
            halves[0][t] = V::low_half(both);
            halves[1][t] = V::high_half(both);
          }
          for (int half = 0; half < 2; ++half) {
            for (int r = 0; r < kHeight; ++r) {
              const uint8_t* from = tables + r * stride + half * 2 * kPlaneBytes + byte * 16;
              const Bytes low = V::table(from);
              const Bytes high = V::table(from + kPlaneBytes);
              for (int t = 0; t < kTiles; ++t) {
                planes[r][t].add(V::look_up(low, halves[half][t]),
                                 V::look_up(high, halves[half][t]));
              }
            }
          }
        }
      }
      for (int r = 0; r < kHeight; ++r) {
        const float scale = *reinterpret_cast<const float*>(scales + r * stride);
        for (int t = 0; t < kTiles; ++t) {
          planes[r][t].finish(scale, out + r * kPanelRows + t * V::kRows);
        }
      }
    }
  }

  // See NqSigns::multiply.
  static void multiply(const SignProduct& p) {
    constexpr int kHeight = 2;
    const int64_t stride = byte_table_bytes(p.row_words);
    for (int64_t part = 0; part < p.rows; part += 2 * V::kRows) {
      const uint8_t* bits = reinterpret_cast<const uint8_t*>(p.words + part * p.row_words);
      const int64_t tile = p.row_words * 4 * V::kRows;
      const bool pair = part + V::kRows < p.rows;
      int64_t row = 0;
      for (; row + kHeight <= p.x_rows; row += kHeight) {
        const uint8_t* tables = p.tables + row * stride;
        float* out = p.out + row * kPanelRows + part;
        micro<kHeight, 1>(bits, p.row_words, tables, out);
        if (pair) micro<kHeight, 1>(bits + tile, p.row_words, tables, out + V::kRows);
      }
      for (; row < p.x_rows; ++row) {
        const uint8_t* tables = p.tables + row * stride;
        float* out = p.out + row * kPanelRows + part;
        if (pair) {
          micro<1, 2>(bits, p.row_words, tables, out);
        } else {
          micro<1, 1>(bits, p.row_words, tables, out);
        }
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_SIGNS_BYTE_PANEL_H
