// SPDX-License-Identifier: Apache-2.0
//
// Layout 0 (row-major words) to layout 1 (tensor-core tiles) and back. See nq_kernels.h.

#include "cuda/launch.h"

namespace nq_cuda {

namespace {

constexpr int kThreads = 256;

// Where a word of layout 1 comes from: its row and its word column in layout 0.
__device__ void source_of(int64_t index, int64_t columns, int64_t* row, int64_t* word) {
  const int64_t column_tiles = (columns + NQ_CUDA_TILE_COLUMNS - 1) / NQ_CUDA_TILE_COLUMNS;
  const int64_t tile = index / NQ_CUDA_TILE_WORDS;
  const int inside = static_cast<int>(index % NQ_CUDA_TILE_WORDS);
  const int lane = inside / 4, part = inside % 4;
  *row = tile / column_tiles * NQ_CUDA_TILE_ROWS + lane / 4 + (part & 1) * 8;
  *word = tile % column_tiles * (NQ_CUDA_TILE_COLUMNS / 32) + lane % 4 + (part >> 1) * 4;
}

__device__ uint32_t valid_bits(int64_t word, int64_t columns) {
  const int64_t left = columns - word * 32;
  return left >= 32 ? 0xffffffffu : (1u << left) - 1u;
}

__global__ void make_tiles(const uint32_t* words, int64_t rows, int64_t columns, uint32_t* tiles,
                           int64_t total) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t width = (columns + 31) / 32;
  int64_t row, word;
  source_of(index, columns, &row, &word);
  uint32_t value = 0;
  if (row < rows && word < width) value = words[row * width + word] & valid_bits(word, columns);
  tiles[index] = value;
}

__global__ void unmake_tiles(const uint32_t* tiles, int64_t rows, int64_t columns, uint32_t* words,
                             int64_t total) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t width = (columns + 31) / 32;
  int64_t row, word;
  source_of(index, columns, &row, &word);
  if (row < rows && word < width) {
    words[row * width + word] = tiles[index] & valid_bits(word, columns);
  }
}

using TileKernel = void(const uint32_t*, int64_t, int64_t, uint32_t*, int64_t);

nq_status run(TileKernel* kernel, const int32_t* from, int64_t rows, int64_t columns, int32_t* to,
              void* stream) {
  const int64_t total = nq_cuda_tile_words(rows, columns);
  if (total == 0 || from == nullptr || to == nullptr) return NQ_BAD_ARGUMENT;
  const int64_t blocks = ceil_div(total, kThreads);
  if (blocks > 0x7fffffff) return NQ_TOO_LARGE;
  const Launch how = {"tiles", dim3(static_cast<unsigned>(blocks)), kThreads, 0, false};
  return launch(how, static_cast<cudaStream_t>(stream), kernel,
                reinterpret_cast<const uint32_t*>(from), rows, columns,
                reinterpret_cast<uint32_t*>(to), total);
}

}  // namespace

}  // namespace nq_cuda

extern "C" int64_t nq_cuda_tile_words(int64_t rows, int64_t columns) {
  if (rows < 1 || columns < 1 || rows > NQ_MAX_DIM || columns > NQ_MAX_DIM) return 0;
  return nq_cuda::ceil_div(rows, NQ_CUDA_TILE_ROWS) *
         nq_cuda::ceil_div(columns, NQ_CUDA_TILE_COLUMNS) * NQ_CUDA_TILE_WORDS;
}

extern "C" nq_status nq_cuda_make_tiles(const int32_t* words, int64_t rows, int64_t columns,
                                        int32_t* tiles, void* stream) {
  return nq_cuda::run(nq_cuda::make_tiles, words, rows, columns, tiles, stream);
}

extern "C" nq_status nq_cuda_unmake_tiles(const int32_t* tiles, int64_t rows, int64_t columns,
                                          int32_t* words, void* stream) {
  return nq_cuda::run(nq_cuda::unmake_tiles, tiles, rows, columns, words, stream);
}
