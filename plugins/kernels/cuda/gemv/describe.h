// SPDX-License-Identifier: Apache-2.0
//
// Describes one half of a pass to the kernels, from what the caller said of the pass. Scratch
// memory and launches are planned in forward.cu.

#ifndef NQ_CUDA_GEMV_DESCRIBE_H
#define NQ_CUDA_GEMV_DESCRIBE_H

#include "cuda/gemv/types.cuh"
#include "cuda/internal.h"

namespace nq_cuda {

inline int column_tiles(int64_t columns) {
  return static_cast<int>(ceil_div(columns, NQ_CUDA_TILE_COLUMNS));
}

inline const void* advance(const void* pointer, int64_t elements, nq_type type) {
  if (pointer == nullptr) return nullptr;
  return static_cast<const char*>(pointer) + elements * (type == NQ_FLOAT32 ? 4 : 2);
}

// Rows `row` to `row + batch - 1` through V, to a float32 middle vector (`first`), or through U,
// from it to y. The caller sets the middle vector, fragments, facts and how the work is cut.
inline GemvStage describe_half(const nq_cuda_pass& pass, bool first, int64_t row, int batch) {
  GemvStage stage = {};
  stage.count = pass.count;
  stage.batch = batch;
  stage.input = first ? pass.input : NQ_INPUT_PLAIN;
  stage.in_type = first ? pass.x_type : NQ_FLOAT32;
  stage.scale_type = pass.layers[0].scale_type;
  stage.out_type = first ? NQ_FLOAT32 : pass.y_type;
  stage.norm_weight = pass.norm_weight;
  stage.norm_eps = pass.norm_eps;
  for (int i = 0; i < pass.count; ++i) {
    const nq_linear& layer = pass.layers[i];
    GemvPart& part = stage.parts[i];
    part.rows = static_cast<int>(first ? layer.rank : layer.out_features);
    part.columns = static_cast<int>(first ? layer.in_features : layer.rank);
    part.row_tiles = static_cast<int>(ceil_div(part.rows, NQ_CUDA_TILE_ROWS));
    part.column_tiles = column_tiles(part.columns);
    part.tiles = reinterpret_cast<const uint4*>(first ? layer.v_words : layer.u_words);
    if (first) {
      part.in = advance(pass.x, row * pass.x_stride, pass.x_type);
      part.in_stride = pass.x_stride;
      part.in_scale = layer.scale_in;
      part.out_scale = layer.scale_mid;
      // The second half reads the middle vector eight values at a time.
      part.padded_rows = static_cast<int>(round_up(layer.rank, 8));
    } else {
      const int64_t offset = row * pass.y_stride[i];
      part.out_scale = layer.scale_out;
      part.bias = layer.bias;
      part.residual = advance(pass.residual[i], offset, pass.y_type);
      part.out = const_cast<void*>(advance(pass.y[i], offset, pass.y_type));
      part.out_stride = pass.y_stride[i];
      part.padded_rows = part.rows;
    }
  }
  return stage;
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMV_DESCRIBE_H
