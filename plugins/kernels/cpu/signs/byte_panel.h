// SPDX-License-Identifier: Apache-2.0
//
// Products by tables of bytes (byte_tables.h) where one register holds one table, written once over
// a vector type. Sixteen bytes of each packed row are turned round, so that a register holds the
// same byte of V::kRows rows, and every half byte of it is an index. The halves are kept for all
// rows of x, whose tables are then looked up one row after the other.
//
// V has: Bytes; kRows, bytes of a register; row_of(i), the row whose bytes stand i-th in one;
// turn(rows, out), sixteen bytes of kRows rows to sixteen registers; low_half, high_half; load and
// store; table(from), sixteen bytes for every lane; look_up(table, index); Planes, sums of
// looked-up bytes, with start(lookups), which takes their biases away, add(low, high), and
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
  static constexpr int kTurnWords = 4;  // words turned round at a time
  static constexpr int kTile = 32;      // words whose halves are kept
  static constexpr int kBlocks = 2;     // registers of rows that share the loads of tables
  static constexpr int kBlockRows = kBlocks * V::kRows;
  static constexpr int kHalfBytes = V::kRows;
  static constexpr int kTileWordBytes = kBlocks * kWordLookups * kHalfBytes;
  static_assert(kPanelRows % kBlockRows == 0, "a panel is a whole number of blocks");
  static_assert(kTile % kGroupWords == 0, "a tile is a whole number of groups");
  static_assert(kTile * kTileWordBytes <= kSignScratch, "a tile fits the scratch memory");

  // halves[word][lookup][block] = the half byte of each row, for `count` words from `first` on.
  static void turn(const uint32_t* const* rows, int64_t first, int count, uint8_t* halves) {
    for (int b = 0; b < kBlocks; ++b) {
      for (int w = 0; w < count; w += kTurnWords) {
        const int there = count - w < kTurnWords ? count - w : kTurnWords;
        const uint8_t* from[V::kRows];
        uint32_t rest[V::kRows][kTurnWords];  // nothing past a row may be read
        for (int i = 0; i < V::kRows; ++i) {
          const uint32_t* row = rows[b * V::kRows + i] + first + w;
          if (there < kTurnWords) {
            memcpy(rest[i], row, static_cast<size_t>(there) * 4);
            row = rest[i];
          }
          from[i] = reinterpret_cast<const uint8_t*>(row);
        }
        Bytes turned[16];
        V::turn(from, turned);
        uint8_t* out = halves + w * kTileWordBytes + b * kHalfBytes;
        for (int k = 0; k < there * 4; ++k, out += 2 * kBlocks * kHalfBytes) {
          V::store(out, V::low_half(turned[k]));
          V::store(out + kBlocks * kHalfBytes, V::high_half(turned[k]));
        }
      }
    }
  }

  // One row of x times kBlockRows rows, over `count` words.
  static void micro(const uint8_t* halves, int count, const uint8_t* tables, const float* scales,
                    float* out) {
    for (int word = 0; word < count; word += kGroupWords, ++scales) {
      const int words = count - word < kGroupWords ? count - word : kGroupWords;
      typename V::Planes planes[kBlocks];
      for (int b = 0; b < kBlocks; ++b) planes[b].start(words * kWordLookups);
      for (int w = 0; w < words; ++w, tables += kWordBytes) {
        for (int byte = 0; byte < 4; ++byte) {
          for (int half = 0; half < 2; ++half, halves += kBlocks * kHalfBytes) {
            const uint8_t* from = tables + half * 2 * kPlaneBytes + byte * 16;
            const Bytes low = V::table(from);
            const Bytes high = V::table(from + kPlaneBytes);
            for (int b = 0; b < kBlocks; ++b) {
              const Bytes index = V::load(halves + b * kHalfBytes);
              planes[b].add(V::look_up(low, index), V::look_up(high, index));
            }
          }
        }
      }
      for (int b = 0; b < kBlocks; ++b) planes[b].finish(*scales, out + b * V::kRows);
    }
  }

  // See NqSigns::multiply.
  static void multiply(const SignProduct& p) {
    uint8_t* halves = static_cast<uint8_t*>(p.scratch);
    const int64_t stride = byte_table_bytes(p.row_words);
    for (int64_t part = 0; part < p.rows; part += kBlockRows) {
      // Rows past the last repeat it: their results are never read.
      const uint32_t* rows[kBlockRows];
      for (int64_t i = 0; i < kBlockRows; ++i) {
        const int64_t row =
            part + i / V::kRows * V::kRows + V::row_of(static_cast<int>(i % V::kRows));
        rows[i] = p.words + (row < p.rows ? row : p.rows - 1) * p.row_words;
      }
      for (int64_t word = 0; word < p.row_words; word += kTile) {
        const int64_t left = p.row_words - word;
        const int count = left < kTile ? static_cast<int>(left) : kTile;
        turn(rows, word, count, halves);
        for (int64_t row = 0; row < p.x_rows; ++row) {
          const uint8_t* tables = p.tables + row * stride;
          float* out = p.out + row * kPanelRows + part;
          if (word == 0) memset(out, 0, kBlockRows * sizeof(float));
          micro(halves, count, tables + word * kWordBytes,
                byte_table_scales(tables, p.row_words) + word / kGroupWords, out);
        }
      }
    }
  }
};

}  // namespace

#endif  // NQ_CPU_SIGNS_BYTE_PANEL_H
