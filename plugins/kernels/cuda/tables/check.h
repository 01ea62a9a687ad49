// SPDX-License-Identifier: Apache-2.0
//
// What callers of the table functions are checked for.

#ifndef NQ_CUDA_TABLES_CHECK_H
#define NQ_CUDA_TABLES_CHECK_H

#include "cuda/internal.h"
#include "nq_cuda_table.h"

namespace nq_cuda {
namespace tables {

constexpr int64_t kBlock = 32;  // columns that are multiplied at a time; groups are multiples of it

inline bool is_half(nq_type type) { return type == NQ_FLOAT16 || type == NQ_BFLOAT16; }

// Whether a pointer that must be there is there, and may be read 16 bytes at a time.
inline bool usable(const void* pointer) { return pointer != nullptr && aligned(pointer); }

// Rows begin at multiples of 16 bytes, but for a single row.
inline bool stride_fits(int64_t stride, int64_t columns, int64_t rows) {
  return stride >= columns && (rows == 1 || stride % 8 == 0);
}

inline int64_t row_bytes(const nq_cuda_table& table) {
  return ceil_div(table.columns * table.bits, 8);
}

inline nq_status check_shape(const nq_cuda_table& table) {
  if (table.rows < 1 || table.columns < 1) return NQ_BAD_ARGUMENT;
  if (table.rows > NQ_MAX_DIM || table.columns > NQ_CUDA_TABLE_COLUMNS) return NQ_TOO_LARGE;
  if (table.bits == 16) return is_half(table.type) ? NQ_OK : NQ_BAD_ARGUMENT;
  if (table.bits != 8 && table.bits != 4) return NQ_BAD_ARGUMENT;
  if (table.scale_type < NQ_FLOAT32 || table.scale_type > NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  const bool whole = table.group >= table.columns;
  return table.group >= 1 && (whole || table.group % kBlock == 0) ? NQ_OK : NQ_BAD_ARGUMENT;
}

inline bool pointers_fit(const nq_cuda_table& table) {
  return usable(table.codes) && (table.bits == 16 || usable(table.scales));
}

inline bool norm_fits(nq_norm norm, float eps, const float* weight, const float* bias) {
  if (norm < NQ_NORM_NONE || norm > NQ_NORM_LAYER) return false;
  return norm == NQ_NORM_NONE || (usable(weight) && aligned(bias) && eps >= 0.0f);
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_CHECK_H
