// SPDX-License-Identifier: Apache-2.0
//
// Norms of rows with an optional residual, a warp a row, and relu.

#include "cuda/launch.h"
#include "cuda/tables/check.h"
#include "cuda/tables/norm.cuh"

namespace nq_cuda {
namespace tables {

namespace {

constexpr int kRows = 4;  // of a block
constexpr int kThreads = 256;

__global__ void __launch_bounds__(kRows * 32)
    normalize(const __grid_constant__ nq_cuda_normalization n) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  wait_for_predecessors();
  release_dependents();
  if (row >= n.rows) return;
  const Norm norm = {n.norm, n.type, n.eps, n.weight, n.bias, static_cast<int>(n.columns)};
  const NormedRow from(norm, n.x, row * n.x_stride, lane);
  from.each([&](int column, float (&v)[8]) {
    const int64_t valid = norm.columns - column;
    if (n.residual != nullptr) {
      float other[8];
      mma::load_values<8>(n.residual, n.type, row * n.residual_stride + column, valid, other);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += other[i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float four[4] = {v[4 * half], v[4 * half + 1], v[4 * half + 2], v[4 * half + 3]};
      mma::store_values(n.out, n.type, row * n.out_stride + column + 4 * half, valid - 4 * half,
                        four);
    }
  });
}

__global__ void __launch_bounds__(kThreads)
    relu(nq_type type, const void* x, int64_t count, void* out) {
  wait_for_predecessors();
  release_dependents();
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  for (int half = 0; half < 2; ++half) {
    const int64_t begin = at + 4 * half;
    if (begin >= count) return;
    float v[4];
    mma::load_values<4>(x, type, begin, count - begin, v);
    // A NaN stays one.
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    mma::store_values(out, type, begin, count - begin, v);
  }
}

nq_status check_normalization(const nq_cuda_normalization& n) {
  if (!is_half(n.type) || n.rows < 1 || n.columns < 1) return NQ_BAD_ARGUMENT;
  if (n.rows > NQ_MAX_DIM || n.columns > (1 << 24)) return NQ_TOO_LARGE;
  if (!norm_fits(n.norm, n.eps, n.weight, n.bias)) return NQ_BAD_ARGUMENT;
  if (!usable(n.x) || !usable(n.out) || !aligned(n.residual)) return NQ_BAD_ARGUMENT;
  const bool fits = stride_fits(n.x_stride, n.columns, n.rows) &&
                    stride_fits(n.out_stride, n.columns, n.rows) &&
                    (n.residual == nullptr || stride_fits(n.residual_stride, n.columns, n.rows));
  return fits ? NQ_OK : NQ_BAD_ARGUMENT;
}

}  // namespace

}  // namespace tables
}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" nq_status nq_cuda_norm(const nq_cuda_normalization* normalization, void* stream) {
  if (normalization == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = tables::check_normalization(*normalization);
  if (status != NQ_OK) return status;
  nq_cuda_device device;
  status = describe(&device);
  if (status != NQ_OK) return status;
  const dim3 grid(static_cast<unsigned>(ceil_div(normalization->rows, tables::kRows)));
  return launch({"norm", grid, tables::kRows * 32, 0, may_overlap(device)},
                static_cast<cudaStream_t>(stream), tables::normalize, *normalization);
}

extern "C" nq_status nq_cuda_activate(nq_type type, const void* x, int64_t count, void* out,
                                      void* stream) {
  if (!tables::is_half(type) || !tables::usable(x) || !tables::usable(out) || count < 1) {
    return NQ_BAD_ARGUMENT;
  }
  const int64_t blocks = ceil_div(count, tables::kThreads * 8);
  if (blocks > 0x7fffffff) return NQ_TOO_LARGE;
  nq_cuda_device device;
  const nq_status status = describe(&device);
  if (status != NQ_OK) return status;
  return launch(
      {"relu", dim3(static_cast<unsigned>(blocks)), tables::kThreads, 0, may_overlap(device)},
      static_cast<cudaStream_t>(stream), tables::relu, type, x, count, out);
}
