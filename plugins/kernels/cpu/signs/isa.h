// SPDX-License-Identifier: Apache-2.0
//
// The functions that one instruction set provides for products of packed signs with rows of x; one
// constant table of them for each, as in cpu/isa.h. All of them look sums of a few neighbouring
// columns up in tables that are made of x once. A row's result does not depend on the other rows
// that are computed with it.

#ifndef NQ_CPU_SIGNS_ISA_H
#define NQ_CPU_SIGNS_ISA_H

#include <stdint.h>

#include "cpu/isa.h"

// Rows of packed signs are arranged by whole blocks of so many.
constexpr int kBlockRows = 32;

// The signs of at most kPanelRows packed rows times all rows of x.
struct SignProduct {
  const uint32_t* words;  // arranged; the first row's number is a multiple of kPanelRows
  int64_t row_words;
  int64_t rows;
  const uint8_t* tables;  // [x_rows][table_bytes(row_words)], aligned to 64
  int64_t x_rows;
  float* out;  // [x_rows][kPanelRows]; entries from `rows` on are unspecified
};

struct NqSigns {
  // Packed rows, `row_words` words each, in the order that `multiply` reads: row by block of
  // kBlockRows, the last of which is filled up with zeros.
  void (*arrange)(const uint32_t* words, int64_t row_words, int64_t rows, uint32_t* out);

  // Bytes of the tables of a row of x with `words` words of 32 columns; a multiple of 64.
  int64_t (*table_bytes)(int64_t words);

  // Makes the tables of columns [first, first + columns) of such a row, whose values x points to.
  // `first` is a multiple of kPanelRows; so is `columns`, unless they are the row's last, and then
  // of 32: columns of padding are zero, so that padding bits do not count.
  void (*make_tables)(const float* x, int64_t first, int64_t columns, int64_t words, uint8_t* row);

  void (*multiply)(const SignProduct& product);
};

extern const NqSigns kSignsScalar;
extern const NqSigns kSignsAvx2;
extern const NqSigns kSignsAvx512;
extern const NqSigns kSignsVbmi;
extern const NqSigns kSignsNeon;

// The table in use; null when NQ_CPU_ISA cannot be honoured.
const NqSigns* nq_signs();

#endif  // NQ_CPU_SIGNS_ISA_H
