// SPDX-License-Identifier: Apache-2.0
//
// What the stand-in's tables and choices share: checks of a table and its values.

#ifndef NQ_STAND_IN_TABLE_H
#define NQ_STAND_IN_TABLE_H

#include "../../kernels/nq_cuda_table.h"
#include "../typed.h"
#include "stream.h"

namespace stand_in {

inline bool is_half(nq_type type) { return type == NQ_FLOAT16 || type == NQ_BFLOAT16; }

// Whether a pointer that must be there is there and aligned.
inline bool good(const void* pointer) { return pointer != nullptr && aligned(pointer); }

inline nq_status check_table(const nq_cuda_table& table, bool pointers) {
  if (table.rows < 1 || table.columns < 1) return NQ_BAD_ARGUMENT;
  if (table.rows > NQ_MAX_DIM || table.columns > NQ_CUDA_TABLE_COLUMNS) return NQ_TOO_LARGE;
  if (pointers && !good(table.codes)) return NQ_BAD_ARGUMENT;
  if (table.bits == 16) return is_half(table.type) ? NQ_OK : NQ_BAD_ARGUMENT;
  if (table.bits != 8 && table.bits != 4) return NQ_BAD_ARGUMENT;
  if (table.scale_type < NQ_FLOAT32 || table.scale_type > NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  if (table.group < 1 || (table.group < table.columns && table.group % 32 != 0)) {
    return NQ_BAD_ARGUMENT;
  }
  return !pointers || good(table.scales) ? NQ_OK : NQ_BAD_ARGUMENT;
}

// Row i, column c.
inline double value_of(const nq_cuda_table& table, int64_t i, int64_t c) {
  if (table.bits == 16) return get(table.codes, table.type, i * table.columns + c);
  const int64_t width = (table.columns * table.bits + 7) / 8;
  const int8_t* row = static_cast<const int8_t*>(table.codes) + i * width;
  int code = row[c * table.bits / 8];
  if (table.bits == 4) code = c % 2 == 0 ? static_cast<int8_t>(code << 4) >> 4 : code >> 4;
  const int64_t groups = (table.columns + table.group - 1) / table.group;
  return code * get(table.scales, table.scale_type, i * groups + c / table.group);
}

}  // namespace stand_in

#endif  // NQ_STAND_IN_TABLE_H
