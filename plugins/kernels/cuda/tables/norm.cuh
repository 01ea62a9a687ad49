// SPDX-License-Identifier: Apache-2.0
//
// The norms of one row by one warp: lane l has columns 8 l to 8 l + 7 of every 256.

#ifndef NQ_CUDA_TABLES_NORM_CUH
#define NQ_CUDA_TABLES_NORM_CUH

#include "cuda/mma/types.cuh"
#include "cuda/ptx.cuh"
#include "cuda/values.cuh"
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

// A row and what its norm needs to know of it. Rows of up to 2048 columns that begin at multiples
// of 16 bytes stay in registers: their loads are all on the way at once, and nothing is read twice.
class NormedRow {
 public:
  // Of the row that begins at element `begin` of x.
  __device__ __forceinline__ NormedRow(const Norm& norm, const void* x, int64_t begin, int lane)
      : norm_(norm), x_(x), begin_(begin), lane_(lane) {
    held_ = norm.columns <= kHeld * 256 && norm.columns % 8 == 0 && begin % 8 == 0;
    if (held_) {
      const uint4* from = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(x) + begin);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        raw_[i] = make_uint4(0, 0, 0, 0);
        if (i * 256 + lane * 8 < norm.columns) raw_[i] = from[i * 32 + lane];
      }
    }
    if (norm.kind == NQ_NORM_NONE) return;
    if (norm.kind == NQ_NORM_LAYER) mean_ = sum(false) / static_cast<float>(norm.columns);
    over_ = 1.0f / sqrtf(sum(true) / static_cast<float>(norm.columns) + norm.eps);
  }

  // take(column, values) for every eight normed values of the lane; those past the last are 0.
  template <typename Take>
  __device__ __forceinline__ void each(Take take) const {
    values([&](int column, float (&v)[8]) {
      apply(column, v);
      take(column, v);
    });
  }

 private:
  static constexpr int kHeld = 8;

  template <typename Take>
  __device__ __forceinline__ void values(Take take) const {
    if (held_) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const int column = i * 256 + lane_ * 8;
        if (i * 256 >= norm_.columns) break;
        if (column >= norm_.columns) continue;
        float v[8];
        unpack_eight(raw_[i], norm_.type, v);
        take(column, v);
      }
      return;
    }
#pragma unroll 1
    for (int column = lane_ * 8; column < norm_.columns; column += 256) {
      float v[8];
      mma::load_values<8>(x_, norm_.type, begin_ + column, norm_.columns - column, v);
      take(column, v);
    }
  }

  __device__ __forceinline__ void apply(int column, float (&v)[8]) const {
    if (norm_.kind == NQ_NORM_NONE) return;
    float other[8];
    load_floats(norm_.weight, column, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = (v[i] - mean_) * over_ * other[i];
    if (norm_.bias == nullptr) return;
    load_floats(norm_.bias, column, other);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += other[i];
  }

  __device__ __forceinline__ void load_floats(const float* from, int column, float (&v)[8]) const {
    if (held_) {
      const uint4* source = reinterpret_cast<const uint4*>(from + column);
      unpack_eight(source[0], source[1], v);
    } else {
      mma::load_values<8>(from, NQ_FLOAT32, column, norm_.columns - column, v);
    }
  }

  // Of the values, or of their squared distances from the mean.
  __device__ __forceinline__ float sum(bool squares) const {
    float total = 0.0f;
    values([&](int column, float (&v)[8]) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float off = column + i < norm_.columns ? v[i] - mean_ : 0.0f;
        total += squares ? off * off : v[i];
      }
    });
    return warp_sum(total);
  }

  const Norm& norm_;
  const void* x_;
  int64_t begin_;
  int lane_;
  bool held_;
  uint4 raw_[kHeld];
  float mean_ = 0.0f, over_ = 1.0f;
};

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_NORM_CUH
