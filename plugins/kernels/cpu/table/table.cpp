// SPDX-License-Identifier: Apache-2.0
//
// Tables of 8- and 4-bit rows: look-up and product, over whichever instruction set is in use.

#include <string.h>

#include "cpu/isa.h"
#include "cpu/table/isa.h"
#include "nq_table.h"

namespace {

// Table rows whose scales are widened at a time, and the room for them.
constexpr int64_t kStripRows = 64;
constexpr int64_t kStripScales = 4 * NQ_TABLE_MAX_GROUPS;

int64_t row_bytes_of(const nq_table* table) { return (table->columns * table->bits + 7) / 8; }

int64_t groups_of(const nq_table* table) {
  return table->group >= table->columns ? 1 : (table->columns - 1) / table->group + 1;
}

int64_t blocks_of(const nq_table* table) {
  return (table->columns + NQ_TABLE_BLOCK - 1) / NQ_TABLE_BLOCK;
}

// A block of x, `count` values of it, in 16-bit fixed point, its largest value the largest number;
// returns the unit. A block that holds no number, or infinity, gets no number as its unit.
float fix_block(const float* x, int64_t count, int64_t bits, int16_t* out) {
  constexpr float kLargest = 32767.0f;
  constexpr int64_t kHalf = NQ_TABLE_BLOCK / 2;
  float most = 0.0f;
  float check = 0.0f;  // becomes no number where a value is not finite
  for (int64_t c = 0; c < count; ++c) {
    const float magnitude = x[c] < 0.0f ? -x[c] : x[c];
    most = magnitude > most ? magnitude : most;
    check += x[c] * 0.0f;
  }
  memset(out, 0, NQ_TABLE_BLOCK * sizeof(int16_t));
  if (check != 0.0f) return check;
  if (most < 1e-30f) return 0.0f;  // one over it is no number
  const float inverse = kLargest / most;
  for (int64_t c = 0; c < count; ++c) {
    // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number.
    const float rounded = (x[c] * inverse + 12582912.0f) - 12582912.0f;
    const int64_t place = bits == 8 ? c : c / 2 + c % 2 * kHalf;
    out[place] = static_cast<int16_t>(rounded);
  }
  return most / kLargest;
}

const void* scales_from(const nq_table* table, int64_t index) {
  return static_cast<const char*>(table->scales) +
         index * (table->scale_type == NQ_FLOAT32 ? 4 : 2);
}

float code_at(const nq_table* table, const int8_t* row, int64_t column) {
  if (table->bits == 8) return static_cast<float>(row[column]);
  const int8_t both = row[column / 2];
  return static_cast<float>(column % 2 == 0 ? ((both & 15) ^ 8) - 8 : both >> 4);
}

}  // namespace

extern "C" nq_status nq_table_check(const nq_table* table) {
  if (table == nullptr || table->codes == nullptr || table->scales == nullptr) {
    return NQ_BAD_ARGUMENT;
  }
  if (table->rows < 1 || table->columns < 1 || table->group < 1) return NQ_BAD_ARGUMENT;
  if (table->rows > NQ_MAX_DIM || table->columns > NQ_MAX_DIM) return NQ_TOO_LARGE;
  if (table->bits != 8 && table->bits != 4) return NQ_BAD_ARGUMENT;
  if (table->group < table->columns && table->group % NQ_TABLE_BLOCK != 0) return NQ_BAD_ARGUMENT;
  if (groups_of(table) > NQ_TABLE_MAX_GROUPS) return NQ_TOO_LARGE;
  return table->scale_type < NQ_FLOAT32 || table->scale_type > NQ_BFLOAT16 ? NQ_BAD_ARGUMENT
                                                                           : NQ_OK;
}

extern "C" size_t nq_table_workspace(const nq_table* table, int64_t x_rows) {
  if (nq_table_check(table) != NQ_OK || x_rows < 1 || x_rows > NQ_MAX_DIM) return 0;
  constexpr size_t kBlockBytes = NQ_TABLE_BLOCK * sizeof(int16_t) + sizeof(float);
  return static_cast<size_t>(blocks_of(table) * x_rows) * kBlockBytes;
}

extern "C" nq_status nq_table_gather(const nq_table* table, const int64_t* indices, int64_t count,
                                     float* y) {
  const nq_status status = nq_table_check(table);
  if (status != NQ_OK) return status;
  if (indices == nullptr || y == nullptr || count < 0) return NQ_BAD_ARGUMENT;
  const NqIsa* isa = nq_isa();
  if (isa == nullptr) return NQ_NO_ISA;
  const int64_t groups = groups_of(table);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = indices[i];
    if (index < 0 || index >= table->rows) return NQ_BAD_ARGUMENT;
    float scales[NQ_TABLE_MAX_GROUPS];
    isa->to_float(scales_from(table, index * groups), table->scale_type, groups, scales);
    const int8_t* row = table->codes + index * row_bytes_of(table);
    float* out = y + i * table->columns;
    for (int64_t group = 0, c = 0; group < groups; ++group) {
      const int64_t end = group + 1 == groups ? table->columns : c + table->group;
      for (; c < end; ++c) out[c] = code_at(table, row, c) * scales[group];
    }
  }
  return NQ_OK;
}

extern "C" nq_status nq_table_arrange(const nq_table* table, const float* x, int64_t x_rows,
                                      void* workspace) {
  const nq_status status = nq_table_check(table);
  if (status != NQ_OK) return status;
  if (x == nullptr || workspace == nullptr || x_rows < 1) return NQ_BAD_ARGUMENT;
  const int64_t blocks = blocks_of(table);
  int16_t* values = static_cast<int16_t*>(workspace);
  float* units = reinterpret_cast<float*>(values + x_rows * blocks * NQ_TABLE_BLOCK);
  for (int64_t row = 0; row < x_rows; ++row, x += table->columns) {
    for (int64_t b = 0; b < blocks; ++b, values += NQ_TABLE_BLOCK) {
      const int64_t first = b * NQ_TABLE_BLOCK;
      const int64_t left = table->columns - first;
      const int64_t count = left < NQ_TABLE_BLOCK ? left : int64_t{NQ_TABLE_BLOCK};
      *units++ = fix_block(x + first, count, table->bits, values);
    }
  }
  return NQ_OK;
}

extern "C" nq_status nq_table_product(const nq_table* table, const void* workspace, int64_t x_rows,
                                      int64_t begin, int64_t end, float* y) {
  const nq_status status = nq_table_check(table);
  if (status != NQ_OK) return status;
  if (workspace == nullptr || y == nullptr || x_rows < 1 || begin < 0 || end < begin ||
      end > table->rows) {
    return NQ_BAD_ARGUMENT;
  }
  const NqIsa* isa = nq_isa();
  const NqTableIsa* products = nq_table_isa();
  if (isa == nullptr || products == nullptr) return NQ_NO_ISA;
  const int64_t groups = groups_of(table);
  const int64_t most = kStripScales / groups < kStripRows ? kStripScales / groups : kStripRows;
  const int16_t* values = static_cast<const int16_t*>(workspace);
  const int64_t whole = x_rows * blocks_of(table) * NQ_TABLE_BLOCK;
  const TableVectors x = {x_rows, values, reinterpret_cast<const float*>(values + whole)};
  alignas(64) float scales[kStripScales];
  for (int64_t row = begin; row < end; row += most) {
    const int64_t count = end - row < most ? end - row : most;
    isa->to_float(scales_from(table, row * groups), table->scale_type, count * groups, scales);
    const int64_t bytes = row_bytes_of(table);
    const TableStrip strip = {
        table->codes + row * bytes, count, bytes, table->columns, groups, table->group, scales};
    auto* product = table->bits == 8 ? products->product8 : products->product4;
    product(strip, x, y + row, table->rows);
  }
  return NQ_OK;
}
