// SPDX-License-Identifier: Apache-2.0
//
// The functions that one instruction set provides for conversions and attention; signs/ and table/
// have those for compressed layers and for tables. Each instruction set is a translation unit with
// compiler flags of its own that defines one constant table of them; dispatch.cpp chooses one.

#ifndef NQ_CPU_ISA_H
#define NQ_CPU_ISA_H

#include <stdint.h>

#include "nq_attention.h"
#include "nq_kernels.h"

// Packed rows that a product covers at a time, keys of a block of attention, and the row stride of
// both results.
constexpr int kPanelRows = NQ_RANGE_STEP;

struct NqIsa {
  // dst[i] = float32(src[i]).
  void (*to_float)(const void* src, nq_type type, int64_t count, float* dst);

  // dst[i] = src[i] rounded to nearest even.
  void (*from_float)(const float* src, nq_type type, int64_t count, void* dst);

  // See nq_attend.
  void (*attend)(const nq_attention* attention, const float* queries, int64_t rows, int64_t first,
                 const void* keys, const void* values, float* y, int64_t y_stride, float* scratch);
};

extern const NqIsa kIsaScalar;
extern const NqIsa kIsaAvx2;
extern const NqIsa kIsaAvx512;
extern const NqIsa kIsaNeon;

// The table in use, chosen at the first call; null when NQ_CPU_ISA cannot be honoured.
const NqIsa* nq_isa();

#endif  // NQ_CPU_ISA_H
