// SPDX-License-Identifier: Apache-2.0
//
// The interface of nq_cuda.h on the CPU, as slow as can be: with it the ONNX Runtime adapter's CUDA
// path (loading, tiles, scratch memory, refusals) runs in tests on machines without a GPU. It
// checks alignment and strides as the real library does.

#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../../kernels/nq_cuda.h"
#include "../typed.h"

#define NQ_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t kWorkspace = 4096;

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Where word `word` of row `row` lies in layout 1.
int64_t place(int64_t row, int64_t word, int64_t columns) {
  const int64_t tile = row / 16 * ((columns + 255) / 256) + word / 8;
  const int64_t lane = row % 8 * 4 + word % 4;
  return tile * 128 + lane * 4 + row % 16 / 8 + word % 8 / 4 * 2;
}

double sign(const int32_t* tiles, int64_t row, int64_t column, int64_t columns) {
  const uint32_t word = static_cast<uint32_t>(tiles[place(row, column / 32, columns)]);
  return (word >> (column % 32)) & 1u ? -1.0 : 1.0;
}

}  // namespace

NQ_EXPORT const char* nq_cuda_info(void) { return "{\"version\": \"" NQ_VERSION "\"}"; }

NQ_EXPORT const char* nq_cuda_error_text(void) { return "stand-in"; }

NQ_EXPORT nq_status nq_cuda_describe(nq_cuda_device* device) {
  if (getenv("NQ_STAND_IN_NO_KERNEL") != nullptr) return NQ_NO_KERNEL;
  *device = nq_cuda_device{90, 1, 1, 1};
  return NQ_OK;
}

NQ_EXPORT int64_t nq_cuda_tile_words(int64_t rows, int64_t columns) {
  return (rows + 15) / 16 * ((columns + 255) / 256) * 128;
}

NQ_EXPORT nq_status nq_cuda_make_tiles(const int32_t* words, int64_t rows, int64_t columns,
                                       int32_t* tiles, void*) {
  memset(tiles, 0, static_cast<size_t>(nq_cuda_tile_words(rows, columns)) * 4);
  const int64_t width = (columns + 31) / 32;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t word = 0; word < width; ++word) {
      const int64_t left = columns - word * 32;
      const uint32_t mask = left >= 32 ? ~0u : (1u << left) - 1u;
      tiles[place(row, word, columns)] =
          static_cast<int32_t>(static_cast<uint32_t>(words[row * width + word]) & mask);
    }
  }
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_copy_rows(const void* from, size_t from_pitch, void* to,
                                      size_t to_pitch, size_t width, size_t rows, void*) {
  for (size_t i = 0; i < rows; ++i) {
    memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
           width);
  }
  return NQ_OK;
}

NQ_EXPORT nq_status nq_cuda_synchronize(void*) { return NQ_OK; }

NQ_EXPORT size_t nq_cuda_workspace_bytes(const nq_cuda_pass*) { return kWorkspace; }

NQ_EXPORT size_t nq_cuda_workspace_bound(const nq_cuda_pass*) { return kWorkspace; }

namespace {

nq_status forward_one(const nq_cuda_pass* pass, int32_t index) {
  const nq_linear& layer = pass->layers[index];
  if (layer.layout != NQ_LAYOUT_TILES_16X256) return NQ_BAD_LAYOUT;
  if (!aligned(pass->x) || !aligned(pass->y[index])) return NQ_BAD_ARGUMENT;
  if (pass->rows > 1 && (pass->x_stride % 8 != 0 || pass->y_stride[index] % 8 != 0)) {
    return NQ_BAD_ARGUMENT;
  }
  std::vector<double> hidden(static_cast<size_t>(layer.rank));
  for (int64_t row = 0; row < pass->rows; ++row) {
    const int64_t start = row * pass->x_stride;
    for (int64_t i = 0; i < layer.rank; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < layer.in_features; ++k) {
        sum += sign(layer.v_words, i, k, layer.in_features) *
               get(pass->x, pass->x_type, start + k) * get(layer.scale_in, layer.scale_type, k);
      }
      if (layer.scale_mid != nullptr) sum *= get(layer.scale_mid, layer.scale_type, i);
      hidden[static_cast<size_t>(i)] = sum;
    }
    for (int64_t i = 0; i < layer.out_features; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < layer.rank; ++k) {
        sum += sign(layer.u_words, i, k, layer.rank) * hidden[static_cast<size_t>(k)];
      }
      sum *= get(layer.scale_out, layer.scale_type, i);
      if (layer.bias != nullptr) sum += get(layer.bias, layer.scale_type, i);
      put(pass->y[index], pass->y_type, row * pass->y_stride[index] + i, static_cast<float>(sum));
    }
  }
  return NQ_OK;
}

}  // namespace

NQ_EXPORT nq_status nq_cuda_forward(const nq_cuda_pass* pass, void*) {
  if (reinterpret_cast<uintptr_t>(pass->workspace) % 256 != 0 ||
      pass->workspace_bytes < kWorkspace) {
    return NQ_WORKSPACE;
  }
  memset(pass->workspace, 0xff, pass->workspace_bytes);
  for (int32_t i = 0; i < pass->count; ++i) {
    const nq_status status = forward_one(pass, i);
    if (status != NQ_OK) return status;
  }
  return NQ_OK;
}
