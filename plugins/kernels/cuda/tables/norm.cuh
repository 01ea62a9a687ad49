// SPDX-License-Identifier: Apache-2.0
//
// The norms of one row by one warp: lane l has columns 8 l to 8 l + 7 of every 256.

#ifndef NQ_CUDA_TABLES_NORM_CUH
#define NQ_CUDA_TABLES_NORM_CUH

#include "cuda/mma/types.cuh"
#include "cuda/ptx.cuh"
#include "nq_cuda_table.h"

namespace nq_cuda {
namespace tables {

struct Norm {
  nq_norm kind;
  nq_type type;
  float eps;
  const float* weight;
  const float* bias;
  int columns;
};

// A row and what its norm needs to know of it.
class NormedRow {
 public:
  // Reads the row that begins at element `begin` of x once for each of its moments.
  __device__ NormedRow(const Norm& norm, const void* x, int64_t begin, int lane)
      : norm_(norm), x_(x), begin_(begin) {
    if (norm.kind == NQ_NORM_NONE) return;
    if (norm.kind == NQ_NORM_LAYER) mean_ = sum(lane, false) / static_cast<float>(norm.columns);
    over_ = 1.0f / sqrtf(sum(lane, true) / static_cast<float>(norm.columns) + norm.eps);
  }

  // Columns `column` to `column + 7`; those past the last are 0.
  __device__ __forceinline__ void read(int column, float (&v)[8]) const {
    const int64_t valid = norm_.columns - column;
    mma::load_values<8>(x_, norm_.type, begin_ + column, valid, v);
    if (norm_.kind == NQ_NORM_NONE) return;
    float other[8];
    mma::load_values<8>(norm_.weight, NQ_FLOAT32, column, valid, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = (v[i] - mean_) * over_ * other[i];
    if (norm_.bias == nullptr) return;
    mma::load_values<8>(norm_.bias, NQ_FLOAT32, column, valid, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += other[i];
  }

 private:
  // Of the values, or of their squared distances from the mean.
  __device__ float sum(int lane, bool squares) const {
    float total = 0.0f;
    for (int column = lane * 8; column < norm_.columns; column += 256) {
      float v[8];
      mma::load_values<8>(x_, norm_.type, begin_ + column, norm_.columns - column, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float off = column + i < norm_.columns ? v[i] - mean_ : 0.0f;
        total += squares ? off * off : v[i];
      }
    }
    return warp_sum(total);
  }

  const Norm& norm_;
  const void* x_;
  int64_t begin_;
  float mean_ = 0.0f, over_ = 1.0f;
};

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_NORM_CUH
