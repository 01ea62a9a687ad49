// SPDX-License-Identifier: Apache-2.0
//
// Rows of a table of 16-bit values. The launch does not overlap its neighbours (no programmatic
// dependent launch), so that the kernels after it may read positions and cache ahead.

#include <cstdint>

#include "cuda/launch.h"
#include "nq_cuda_decode.h"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    gather_rows(const uint4* table, int64_t table_rows, int64_t width, const int64_t* tokens,
                uint4* out) {
  const int64_t token = tokens[blockIdx.y];
  if (token < 0 || token >= table_rows) return;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column < width) out[blockIdx.y * width + column] = table[token * width + column];
}

}  // namespace

}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" nq_status nq_cuda_gather_rows(const void* table, int64_t table_rows, int64_t row_bytes,
                                         const int64_t* tokens, int64_t count, void* out,
                                         void* stream) {
  if (table == nullptr || tokens == nullptr || out == nullptr || !aligned(table) || !aligned(out) ||
      table_rows < 1 || row_bytes < 16 || row_bytes % 16 != 0 || count < 1) {
    return NQ_BAD_ARGUMENT;
  }
  if (row_bytes > NQ_MAX_DIM) return NQ_TOO_LARGE;
  const int64_t width = row_bytes / 16, most = 0xffff;  // blocks in y
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t rows = count - begin < most ? count - begin : most;
    const dim3 grid(static_cast<unsigned>(ceil_div(width, kThreads)), static_cast<unsigned>(rows));
    const nq_status status =
        launch({"embedding", grid, kThreads, 0, false}, static_cast<cudaStream_t>(stream),
               gather_rows, static_cast<const uint4*>(table), table_rows, width, tokens + begin,
               static_cast<uint4*>(out) + begin * width);
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}
