// SPDX-License-Identifier: Apache-2.0
//
// The functions that one instruction set provides for tables of 8- and 4-bit rows; one constant
// table of them for each, as in cpu/isa.h.

#ifndef NQ_CPU_TABLE_ISA_H
#define NQ_CPU_TABLE_ISA_H

#include <stdint.h>

// A strip of a table's rows, its scales widened to float32.
struct TableStrip {
  const int8_t* codes;  // first row
  int64_t rows;
  int64_t row_bytes;
  int64_t columns;
  int64_t groups;         // scales of a row
  int64_t group_columns;  // a multiple of NQ_TABLE_BLOCK; any number when there is one group
  const float* scales;    // [rows][groups]
};

// Vectors in 16-bit fixed point, block by block of NQ_TABLE_BLOCK columns: the last one is padded
// with zeros, and for 4 bits a block holds its even columns, then its odd ones.
struct TableVectors {
  int64_t rows;
  const int16_t* values;  // [rows][blocks][NQ_TABLE_BLOCK]
  const float* units;     // [rows][blocks]: what 1 is worth in a block
};

struct NqTableIsa {
  // out[r * stride + i] = row i times vector r.
  void (*product8)(const TableStrip& strip, const TableVectors& x, float* out, int64_t stride);
  void (*product4)(const TableStrip& strip, const TableVectors& x, float* out, int64_t stride);
};

extern const NqTableIsa kTableScalar;
extern const NqTableIsa kTableAvx2;
extern const NqTableIsa kTableAvx512;
extern const NqTableIsa kTableNeon;

// The one in use; null when NQ_CPU_ISA cannot be honoured.
const NqTableIsa* nq_table_isa();

#endif  // NQ_CPU_TABLE_ISA_H
