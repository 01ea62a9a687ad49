// SPDX-License-Identifier: Apache-2.0
//
// Rows of the embedding table, with what models add to them: a factor (Gemma) and learned positions
// (OPT). An ordinary launch (no programmatic dependent launch), so that the kernels after it may
// read positions and cache ahead.

#include "cuda/launch.h"
#include "cuda/tables/check.h"
#include "cuda/values.cuh"

namespace nq_cuda {
namespace tables {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostRows = 0xffff;  // blocks in y

// Place of row `row` in its sequence; negative where the sequence is idle or the row is nobody's.
__device__ int64_t place_of(const nq_cuda_embedding& e, int64_t row) {
  if (e.sequences == 0) return 0;
  int64_t sequence = row, first = row;
  if (e.starts != nullptr) {
    sequence = 0;
    while (sequence < e.sequences && row >= e.starts[sequence + 1]) ++sequence;
    if (sequence >= e.sequences) return -1;
    first = e.starts[sequence];
  }
  if (sequence >= e.sequences || row < first || e.positions[sequence] < 0) return -1;
  return e.positions[sequence] + row - first;
}

__device__ __forceinline__ float value_of(const nq_cuda_table& table, int64_t row, int64_t column) {
  if (table.bits == 16) return load_value(table.codes, row * table.columns + column, table.type);
  const int64_t width = (table.columns * table.bits + 7) / 8;
  int code = static_cast<const int8_t*>(table.codes)[row * width + column * table.bits / 8];
  if (table.bits == 4) code = column % 2 == 0 ? ((code & 15) ^ 8) - 8 : code >> 4;
  const int64_t groups = (table.columns + table.group - 1) / table.group;
  const float scale =
      load_value(table.scales, row * groups + column / table.group, table.scale_type);
  return static_cast<float>(code) * scale;
}

__global__ void __launch_bounds__(kThreads)
    embed(const __grid_constant__ nq_cuda_embedding e, int64_t first) {
  const int64_t row = first + blockIdx.y, token = e.tokens[row], place = place_of(e, row);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token < 0 || token >= e.table.rows || place < 0 || column >= e.table.columns) return;
  float value = e.multiplier * value_of(e.table, token, column);
  const int64_t learned = place + e.learned_offset;
  if (e.learned != nullptr && learned >= 0 && learned < e.learned_rows) {
    value += load_value(e.learned, learned * e.table.columns + column, e.type);
  }
  store_value(e.out, row * e.out_stride + column, e.type, value);
}

nq_status check_embedding(const nq_cuda_embedding& e) {
  const nq_status status = check_shape(e.table);
  if (status != NQ_OK) return status;
  if (!pointers_fit(e.table) || !is_half(e.type) || e.count < 1) return NQ_BAD_ARGUMENT;
  if (!usable(e.tokens) || !usable(e.out)) return NQ_BAD_ARGUMENT;
  if (!stride_fits(e.out_stride, e.table.columns, e.count)) return NQ_BAD_ARGUMENT;
  if (e.sequences < 0 || (e.sequences > 0 && !usable(e.positions))) return NQ_BAD_ARGUMENT;
  if (e.learned == nullptr) return NQ_OK;
  const bool fits = aligned(e.learned) && e.learned_rows >= 1 && e.sequences >= 1;
  return fits ? NQ_OK : NQ_BAD_ARGUMENT;
}

}  // namespace

}  // namespace tables
}  // namespace nq_cuda

using namespace nq_cuda;

extern "C" nq_status nq_cuda_embed(const nq_cuda_embedding* embedding, void* stream) {
  if (embedding == nullptr) return NQ_BAD_ARGUMENT;
  nq_status status = tables::check_embedding(*embedding);
  const int64_t across = ceil_div(embedding->table.columns, tables::kThreads);
  for (int64_t first = 0; status == NQ_OK && first < embedding->count; first += tables::kMostRows) {
    const int64_t left = embedding->count - first;
    const int64_t rows = left < tables::kMostRows ? left : tables::kMostRows;
    const dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(rows));
    status = launch({"embedding", grid, tables::kThreads, 0, false},
                    static_cast<cudaStream_t>(stream), tables::embed, *embedding, first);
  }
  return status;
}
