// SPDX-License-Identifier: Apache-2.0
//
// What the kernels of the matrix-vector family are told: one half of a layer, out = out_scale *
// (B (in_scale * f(in))) with the sign matrix B in layout 1, for each projection of a group.

#ifndef NQ_CUDA_GEMV_TYPES_CUH
#define NQ_CUDA_GEMV_TYPES_CUH

#include <cstdint>

#include "nq_cuda.h"

namespace nq_cuda {

constexpr int kGemvWarps = 16;    // most warps of a block
constexpr int kConvertWarps = 8;  // of a block that only converts
constexpr int kGemvRows = 8;      // most rows of activations of a launch

// What a slice of one row is, beside its fragments: the scale of its fixed-point values, their sum,
// and the sum of squares of the input (for the norm).
struct SliceFacts {
  float scale;
  int total;
  float squares;
  float unused;
};

// One projection's half. All sizes are in elements unless they say tiles.
struct GemvPart {
  const uint4* tiles;
  const void* in;
  const void* in_scale;   // first half only
  const void* out_scale;  // null: 1
  const void* bias;       // null: 0
  const void* residual;   // null: 0
  void* out;
  uint4* fragments;   // [row][column tile][32], where another launch converts
  SliceFacts* facts;  // [row][slice]
  int64_t in_stride, out_stride;
  int rows, columns, padded_rows;  // padded_rows: how many are written
  int row_tiles, column_tiles;
  int first_block;
};

struct GemvStage {
  GemvPart parts[NQ_CUDA_MAX_GROUP];
  int count;
  int batch;            // rows of activations, at most the kernel's ROWS
  int slices;           // of the widest part
  int tiles_per_block;  // row tiles of a block
  int tiles_per_pass;   // row tiles between two reductions
  nq_input input;
  nq_type in_type, scale_type, out_type;
  const float* norm_weight;
  float norm_eps;
};

// Where a kernel finds its activations.
enum class Source {
  kInput,     // x: 16-bit values, with the input function and in_scale to apply
  kMiddle,    // the middle vector: float32, ready
  kFragments  // converted by an earlier launch
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_TYPES_CUH
