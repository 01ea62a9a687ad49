// SPDX-License-Identifier: Apache-2.0
//
// A table of rows in 8 or 4 bits as a small C interface that knows no framework: the embedding
// (rows looked up) and the output head (all rows times a vector), from the same bytes.
//
//   row i, column c = code(i, c) * scale(i, c div group)
//
// Codes are two's complement. 8 bits: one byte a code. 4 bits: two codes a byte, the even column in
// the low half, a row starts at a byte (ONNX's layout of INT4). Nothing here allocates, throws or
// starts threads. Rows looked up are exact to float32; products take x in 16-bit fixed point, one
// unit for each block of 32 columns (an error of 1e-5 of the norms, 5e-5 beside outliers), and
// otherwise compute in integers and float32. A vector's products do not depend on the others.

#ifndef NQ_TABLE_H
#define NQ_TABLE_H

#include "nq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  NQ_TABLE_BLOCK = 32,        // groups are multiples of this, or whole rows
  NQ_TABLE_MAX_GROUPS = 1024  // most scales of one row
};

typedef struct nq_table {
  int64_t rows;
  int64_t columns;
  int64_t bits;   // 8 or 4
  int64_t group;  // columns that share a scale; `columns` or more: one scale a row
  nq_type scale_type;
  const int8_t* codes;  // [rows][ceil(columns * bits / 8)]
  const void* scales;   // [rows][ceil(columns / group)]
} nq_table;

// Says whether the description is usable: sizes, types, pointers.
nq_status nq_table_check(const nq_table* table);

// Bytes of scratch memory for `x_rows` vectors in the order that the product wants.
size_t nq_table_workspace(const nq_table* table, int64_t x_rows);

// y[i] = row indices[i], for i in [0, count). NQ_BAD_ARGUMENT when an index is not in [0, rows).
nq_status nq_table_gather(const nq_table* table, const int64_t* indices, int64_t count, float* y);

// Puts x [x_rows][columns] into the workspace (aligned to 64).
nq_status nq_table_arrange(const nq_table* table, const float* x, int64_t x_rows, void* workspace);

// y[r * rows + i] = row i times vector r, for table rows [begin, end) and every arranged vector.
nq_status nq_table_product(const nq_table* table, const void* workspace, int64_t x_rows,
                           int64_t begin, int64_t end, float* y);

#ifdef __cplusplus
}
#endif

#endif  // NQ_TABLE_H
