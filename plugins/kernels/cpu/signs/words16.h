// SPDX-License-Identifier: Apache-2.0
//
// Packed rows in tiles of sixteen: tile by tile, word by word, the word of each row.

#ifndef NQ_CPU_SIGNS_WORDS16_H
#define NQ_CPU_SIGNS_WORDS16_H

#include "cpu/signs/isa.h"

namespace {

constexpr int kTileRows = 16;
static_assert(kBlockRows % kTileRows == 0, "a block is a whole number of tiles");

// See NqSigns::arrange.
inline void arrange_words16(const uint32_t* words, int64_t row_words, int64_t rows, uint32_t* out) {
  for (int64_t tile = 0; tile < rows; tile += kBlockRows) {
    for (int64_t row = tile; row < tile + kBlockRows; ++row) {
      uint32_t* to = out + row / kTileRows * kTileRows * row_words + row % kTileRows;
      for (int64_t w = 0; w < row_words; ++w) {
        to[w * kTileRows] = row < rows ? words[row * row_words + w] : 0u;
      }
    }
  }
}

}  // namespace

#endif  // NQ_CPU_SIGNS_WORDS16_H
