// SPDX-License-Identifier: Apache-2.0
//
// nq_cuda.h on the CPU, as slow as can be: with it the ONNX Runtime adapter's CUDA path (loading,
// tiles, scratch memory, refusals) and the Python runtime run in tests on machines without a GPU.
// It checks alignment and strides as the real library does.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../../kernels/nq_cuda.h"
#include "../typed.h"
#include "stream.h"

using stand_in::aligned;
using stand_in::enqueue;

namespace {

constexpr size_t kWorkspace = 4096;

// Where word `word` of row `row` lies in layout 1.
int64_t place(int64_t row, int64_t word, int64_t columns) {
  const int64_t tile = row / 16 * ((columns + 255) / 256) + word / 8;
  const int64_t lane = row % 8 * 4 + word % 4;
  return tile * 128 + lane * 4 + row % 16 / 8 + word % 8 / 4 * 2;
}

}  // namespace

NQ_EXPORT const char* nq_cuda_info(void) {
  return "{\"version\": \"" NQ_VERSION "\", \"architectures\": \"90\"}";
}

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
                                       int32_t* tiles, void* stream) {
  return enqueue(stream, [=]() {
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
  });
}

NQ_EXPORT nq_status nq_cuda_unmake_tiles(const int32_t* tiles, int64_t rows, int64_t columns,
                                         int32_t* words, void* stream) {
  return enqueue(stream, [=]() {
    const int64_t width = (columns + 31) / 32;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t word = 0; word < width; ++word) {
        words[row * width + word] = tiles[place(row, word, columns)];
      }
    }
    return NQ_OK;
  });
}

NQ_EXPORT nq_status nq_cuda_copy_rows(const void* from, size_t from_pitch, void* to,
                                      size_t to_pitch, size_t width, size_t rows, void* stream) {
  return enqueue(stream, [=]() {
    for (size_t i = 0; i < rows; ++i) {
      memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch,
             width);
    }
    return NQ_OK;
  });
}

NQ_EXPORT size_t nq_cuda_workspace_bytes(const nq_cuda_pass*) { return kWorkspace; }

NQ_EXPORT size_t nq_cuda_workspace_bound(const nq_cuda_pass*) { return kWorkspace; }

namespace {

double gate(nq_input input, double x) {
  if (input == NQ_INPUT_SILU) return x / (1.0 + exp(-x));
  return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

// f(x) of one row.
std::vector<double> input_of(const nq_cuda_pass& pass, int64_t row) {
  const int64_t n = pass.layers[0].in_features, start = row * pass.x_stride;
  std::vector<double> x(static_cast<size_t>(n));
  double squares = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const double value = get(pass.x, pass.x_type, start + k);
    squares += value * value;
    const bool gated = pass.input == NQ_INPUT_SILU || pass.input == NQ_INPUT_GELU;
    x[static_cast<size_t>(k)] =
        gated ? gate(pass.input, value) * get(pass.x, pass.x_type, start + n + k) : value;
  }
  if (pass.input == NQ_INPUT_RMS_NORM) {
    const double over = 1.0 / sqrt(squares / static_cast<double>(n) + pass.norm_eps);
    for (int64_t k = 0; k < n; ++k) {
      x[static_cast<size_t>(k)] *= over * static_cast<double>(pass.norm_weight[k]);
    }
  }
  return x;
}

void multiply(const int32_t* tiles, int64_t rows, int64_t columns, const std::vector<double>& x,
              std::vector<double>& y) {
  for (int64_t i = 0; i < rows; ++i) {
    double sum = 0.0;
    for (int64_t word = 0; word < (columns + 31) / 32; ++word) {
      const uint32_t bits = static_cast<uint32_t>(tiles[place(i, word, columns)]);
      for (int64_t k = word * 32; k < columns && k < word * 32 + 32; ++k) {
        const double value = x[static_cast<size_t>(k)];
        sum += bits >> (k % 32) & 1u ? -value : value;
      }
    }
    y[static_cast<size_t>(i)] = sum;
  }
}

nq_status check_one(const nq_cuda_pass& pass, int32_t index) {
  const nq_linear& layer = pass.layers[index];
  if (layer.layout != NQ_LAYOUT_TILES_16X256) return NQ_BAD_LAYOUT;
  if (!aligned(pass.x) || !aligned(pass.y[index])) return NQ_BAD_ARGUMENT;
  if (pass.residual[index] != nullptr && !aligned(pass.residual[index])) return NQ_BAD_ARGUMENT;
  if (pass.rows > 1 && (pass.x_stride % 8 != 0 || pass.y_stride[index] % 8 != 0)) {
    return NQ_BAD_ARGUMENT;
  }
  return NQ_OK;
}

void forward_one(const nq_cuda_pass& pass, int32_t index, int64_t row, std::vector<double> x) {
  const nq_linear& layer = pass.layers[index];
  for (int64_t k = 0; k < layer.in_features; ++k) {
    x[static_cast<size_t>(k)] *= get(layer.scale_in, layer.scale_type, k);
  }
  std::vector<double> hidden(static_cast<size_t>(layer.rank));
  multiply(layer.v_words, layer.rank, layer.in_features, x, hidden);
  for (int64_t i = 0; layer.scale_mid != nullptr && i < layer.rank; ++i) {
    hidden[static_cast<size_t>(i)] *= get(layer.scale_mid, layer.scale_type, i);
  }
  std::vector<double> out(static_cast<size_t>(layer.out_features));
  multiply(layer.u_words, layer.out_features, layer.rank, hidden, out);
  for (int64_t i = 0; i < layer.out_features; ++i) {
    const int64_t place = row * pass.y_stride[index] + i;
    double sum = out[static_cast<size_t>(i)] * get(layer.scale_out, layer.scale_type, i);
    if (layer.bias != nullptr) sum += get(layer.bias, layer.scale_type, i);
    if (pass.residual[index] != nullptr) sum += get(pass.residual[index], pass.y_type, place);
    put(pass.y[index], pass.y_type, place, static_cast<float>(sum));
  }
}

}  // namespace

NQ_EXPORT nq_status nq_cuda_forward(const nq_cuda_pass* pass, void* stream) {
  if (reinterpret_cast<uintptr_t>(pass->workspace) % 256 != 0 ||
      pass->workspace_bytes < kWorkspace) {
    return NQ_WORKSPACE;
  }
  if (pass->count < 1 || pass->count > NQ_CUDA_MAX_GROUP || pass->rows < 1) return NQ_BAD_ARGUMENT;
  for (int32_t i = 0; i < pass->count; ++i) {
    const nq_status status = check_one(*pass, i);
    if (status != NQ_OK) return status;
  }
  const std::vector<nq_linear> layers(pass->layers, pass->layers + pass->count);
  return enqueue(stream, [copy = *pass, layers]() mutable {
    copy.layers = layers.data();
    memset(copy.workspace, 0xff, copy.workspace_bytes);
    for (int64_t row = 0; row < copy.rows; ++row) {
      const std::vector<double> x = input_of(copy, row);
      for (int32_t i = 0; i < copy.count; ++i) forward_one(copy, i, row, x);
    }
    return NQ_OK;
  });
}
