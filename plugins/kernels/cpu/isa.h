// SPDX-License-Identifier: Apache-2.0
//
// The functions that one instruction set provides for linear layers and attention. Each instruction
// set (isa/) is a translation unit with compiler flags of its own that defines one constant table
// of them; dispatch.cpp chooses one.

#ifndef NQ_CPU_ISA_H
#define NQ_CPU_ISA_H

#include <stdint.h>

#include "nq_attention.h"
#include "nq_kernels.h"

// Weight rows that one call of `panel` covers, and the row stride of its result.
constexpr int kPanelRows = NQ_RANGE_STEP;
// Words (of 32 columns) whose signs `panel` expands at a time; sized for a first-level cache.
constexpr int kTileWords = 4;
// Most rows of x that go through `gemv` one by one instead of `panel`.
constexpr int64_t kLookupRows = 4;
// Floats of scratch that `panel` needs: kTileWords * 32 columns of kPanelRows signs.
constexpr int kTileFloats = kTileWords * 32 * kPanelRows;

struct NqIsa {
  const char* name;

  // dst[i] = float32(src[i]).
  void (*to_float)(const void* src, nq_type type, int64_t count, float* dst);

  // dst[i] = src[i] rounded to nearest even.
  void (*from_float)(const float* src, nq_type type, int64_t count, void* dst);

  // What `lookup` makes of 32 columns of x, in floats.
  int lookup_floats;

  // The form of x that `gemv` reads: tables of the sums that a few neighbouring columns can have.
  // `columns` is a multiple of 32.
  void (*lookup)(const float* x, int64_t columns, float* tables);

  // out[i] = sum over k of sign(i, k) * x[k], for `rows` packed rows of `row_words` words. Columns
  // of padding are zero in x, so that padding bits do not count.
  void (*gemv)(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables,
               float* out);

  // The same for `x_rows` rows of x itself, `stride` floats apart, and at most kPanelRows packed
  // rows: out[row * kPanelRows + i]. Entries i >= rows are unspecified. `tile` is kTileFloats
  // floats.
  void (*panel)(const uint32_t* words, int64_t row_words, int64_t rows, const float* x,
                int64_t stride, int64_t x_rows, float* out, float* tile);

  // The same from the tables of `x_rows` rows, one after the other; null where `panel` is faster.
  void (*lookup_panel)(const uint32_t* words, int64_t row_words, int64_t rows, const float* tables,
                       int64_t x_rows, float* out, float* tile);

  // See nq_attend.
  void (*attend)(const nq_attention* attention, const float* queries, int64_t rows, int64_t first,
                 const float* keys, const float* values, float* y, int64_t y_stride,
                 float* scratch);
};

extern const NqIsa kIsaScalar;
extern const NqIsa kIsaAvx2;
extern const NqIsa kIsaAvx512;
extern const NqIsa kIsaNeon;

// The table in use, chosen at the first call; null when NQ_CPU_ISA cannot be honoured.
const NqIsa* nq_isa();

#endif  // NQ_CPU_ISA_H
