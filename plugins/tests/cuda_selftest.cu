// SPDX-License-Identifier: Apache-2.0
//
// Checks every algorithm of the CUDA library that this GPU has against float64 on the same bits.
// Every buffer is an allocation of exactly the promised size, so that compute-sanitizer sees the
// first byte read or written outside: tests/plugins/cuda/sanitize.sh runs it under memcheck and
// racecheck. Exit status 0: all is well; 1: a difference; 77: no usable GPU.

#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "../kernels/nq_cuda.h"
#include "random.h"
#include "typed.h"

namespace {

int failures = 0;

#define CHECK(call)                                                    \
  do {                                                                 \
    const cudaError_t nq_error = (call);                               \
    if (nq_error != cudaSuccess) {                                     \
      printf("FAILED: %s: %s\n", #call, cudaGetErrorString(nq_error)); \
      exit(1);                                                         \
    }                                                                  \
  } while (0)

// Host bytes and a device allocation of the same size.
struct Buffer {
  explicit Buffer(size_t bytes) : host(bytes), device(nullptr) {
    CHECK(cudaMalloc(&device, bytes));
  }
  ~Buffer() { cudaFree(device); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void upload() { CHECK(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice)); }
  void download() { CHECK(cudaMemcpy(host.data(), device, host.size(), cudaMemcpyDeviceToHost)); }
  std::vector<char> host;
  void* device;
};

// Random values of a type: base + spread * (-1 to 1), every 97th a hundred times larger if asked.
void fill(Buffer* buffer, nq_type type, float base, float spread, bool outliers = false) {
  const size_t count = buffer->host.size() / bytes_of(type);
  for (size_t i = 0; i < count; ++i) {
    const float factor = outliers && i % 97 == 3 ? 100.0f : 1.0f;
    put(buffer->host.data(), type, i, factor * (base + spread * random_float()));
  }
  buffer->upload();
}

struct Layer {
  Layer(int64_t n, int64_t rank, int64_t m, nq_type type)
      : v_width((n + 31) / 32),
        u_width((rank + 31) / 32),
        v(static_cast<size_t>(rank * v_width) * 4),
        u(static_cast<size_t>(m * u_width) * 4),
        v_tiles(static_cast<size_t>(nq_cuda_tile_words(rank, n)) * 4),
        u_tiles(static_cast<size_t>(nq_cuda_tile_words(m, rank)) * 4),
        in(static_cast<size_t>(n) * bytes_of(type)),
        mid(static_cast<size_t>(rank) * bytes_of(type)),
        out(static_cast<size_t>(m) * bytes_of(type)),
        bias(static_cast<size_t>(m) * bytes_of(type)) {
    for (Buffer* words : {&v, &u}) {
      for (char& byte : words->host) byte = static_cast<char>(random_bits());
      words->upload();
    }
    fill(&in, type, 1.0f, 0.9f);
    fill(&mid, type, 1.0f, 0.9f);
    fill(&out, type, 0.02f, 0.019f);
    fill(&bias, type, 0.0f, 1.0f);
    const nq_status a = nq_cuda_make_tiles(static_cast<int32_t*>(v.device), rank, n,
                                           static_cast<int32_t*>(v_tiles.device), nullptr);
    const nq_status b = nq_cuda_make_tiles(static_cast<int32_t*>(u.device), m, rank,
                                           static_cast<int32_t*>(u_tiles.device), nullptr);
    if (a != NQ_OK || b != NQ_OK || nq_cuda_synchronize(nullptr) != NQ_OK) ++failures;
    linear = nq_linear{n,
                       rank,
                       m,
                       NQ_LAYOUT_TILES_16X256,
                       type,
                       static_cast<int32_t*>(v_tiles.device),
                       static_cast<int32_t*>(u_tiles.device),
                       in.device,
                       mid.device,
                       out.device,
                       bias.device};
  }
  int64_t v_width, u_width;
  Buffer v, u, v_tiles, u_tiles, in, mid, out, bias;
  nq_linear linear;
};

double sign(const Buffer& words, int64_t width, int64_t row, int64_t column) {
  const uint32_t* data = reinterpret_cast<const uint32_t*>(words.host.data());
  return (data[row * width + column / 32] >> (column % 32)) & 1u ? -1.0 : 1.0;
}

// f(x) of one row in float64.
std::vector<double> input_row(const nq_cuda_pass& pass, const Buffer& x, const Buffer& weight,
                              int64_t row) {
  const int64_t n = pass.layers[0].in_features;
  std::vector<double> f(static_cast<size_t>(n));
  const auto value = [&](int64_t i) {
    return get(x.host.data(), pass.x_type, static_cast<size_t>(row * pass.x_stride + i));
  };
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += value(i) * value(i);
  for (int64_t i = 0; i < n; ++i) {
    double& y = f[static_cast<size_t>(i)];
    y = value(i);
    if (pass.input == NQ_INPUT_RMS_NORM) {
      y *= get(weight.host.data(), NQ_FLOAT32, static_cast<size_t>(i)) /
           sqrt(squares / static_cast<double>(n) + pass.norm_eps);
    } else if (pass.input == NQ_INPUT_SILU) {
      y *= value(n + i) / (1.0 + exp(-y));
    } else if (pass.input == NQ_INPUT_GELU) {
      y *= 0.5 * (1.0 + tanh(sqrt(2.0 / M_PI) * (y + 0.044715 * y * y * y))) * value(n + i);
    }
  }
  return f;
}

// Largest relative error of a row of one layer's output.
double worst_row(const nq_cuda_pass& pass, const Layer& layer, int index, const Buffer& x,
                 const Buffer& weight, const Buffer& y, const Buffer& residual) {
  const nq_linear& l = layer.linear;
  double worst = 0.0;
  std::vector<double> hidden(static_cast<size_t>(l.rank));
  for (int64_t row = 0; row < pass.rows; ++row) {
    const std::vector<double> f = input_row(pass, x, weight, row);
    for (int64_t i = 0; i < l.rank; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < l.in_features; ++k) {
        sum += sign(layer.v, layer.v_width, i, k) * f[static_cast<size_t>(k)] *
               get(layer.in.host.data(), l.scale_type, static_cast<size_t>(k));
      }
      hidden[static_cast<size_t>(i)] =
          sum * get(layer.mid.host.data(), l.scale_type, static_cast<size_t>(i));
    }
    double error = 0.0, norm = 0.0;
    for (int64_t i = 0; i < l.out_features; ++i) {
      double sum = 0.0;
      for (int64_t k = 0; k < l.rank; ++k) {
        sum += sign(layer.u, layer.u_width, i, k) * hidden[static_cast<size_t>(k)];
      }
      const size_t at = static_cast<size_t>(row * pass.y_stride[index] + i);
      sum *= get(layer.out.host.data(), l.scale_type, static_cast<size_t>(i));
      sum += get(layer.bias.host.data(), l.scale_type, static_cast<size_t>(i));
      if (pass.residual[index] != nullptr) sum += get(residual.host.data(), pass.y_type, at);
      const double difference = get(y.host.data(), pass.y_type, at) - sum;
      error += difference * difference;
      norm += sum * sum;
    }
    const double relative = sqrt(error / (norm + 1e-30));
    if (!(relative <= worst)) worst = relative;  // NaN stays
  }
  return worst;
}

struct Case {
  int64_t n, rows;
  int count;  // projections: ranks and outputs differ from one to the next
  nq_type x_type, y_type;
  nq_input input;
  bool residual;
};

double run(const Case& c, nq_algorithm algorithm) {
  const bool gated = c.input == NQ_INPUT_SILU || c.input == NQ_INPUT_GELU;
  const int64_t ranks[] = {280, 65, 130, 33}, outs[] = {192, 97, 40, 300};
  const int64_t width = c.n * (gated ? 2 : 1), stride = (width + 7) / 8 * 8;
  Buffer x(static_cast<size_t>(c.rows * stride) * 2);
  Buffer weight(static_cast<size_t>(c.n) * 4);
  fill(&x, c.x_type, 0.0f, 1.0f, !gated);
  fill(&weight, NQ_FLOAT32, 1.0f, 0.5f);
  Layer* layers[NQ_CUDA_MAX_GROUP] = {};
  Buffer* y[NQ_CUDA_MAX_GROUP] = {};
  Buffer* residual[NQ_CUDA_MAX_GROUP] = {};
  nq_linear linears[NQ_CUDA_MAX_GROUP];
  nq_cuda_pass pass = {};
  for (int i = 0; i < c.count; ++i) {
    layers[i] = new Layer(c.n, ranks[i], outs[i], nq_type(c.rows % 3));
    linears[i] = layers[i]->linear;
    pass.y_stride[i] = (outs[i] + 7) / 8 * 8;
    const size_t bytes = static_cast<size_t>(c.rows * pass.y_stride[i]) * bytes_of(c.y_type);
    y[i] = new Buffer(bytes);
    residual[i] = new Buffer(bytes);
    fill(residual[i], c.y_type, 0.0f, 1.0f);
    CHECK(cudaMemset(y[i]->device, 0xff, bytes));  // NaN in every type
    pass.y[i] = y[i]->device;
    pass.residual[i] = c.residual && i % 2 == 0 ? residual[i]->device : nullptr;
  }
  pass.layers = linears;
  pass.count = c.count;
  pass.x_type = c.x_type;
  pass.y_type = c.y_type;
  pass.input = c.input;
  pass.algorithm = algorithm;
  pass.rows = c.rows;
  pass.x = x.device;
  pass.x_stride = stride;
  pass.norm_eps = 1e-5f;
  pass.norm_weight = static_cast<const float*>(weight.device);
  pass.workspace_bytes = nq_cuda_workspace_bytes(&pass);
  Buffer workspace(pass.workspace_bytes > 0 ? pass.workspace_bytes : 1);
  CHECK(cudaMemset(workspace.device, 0xff, workspace.host.size()));
  pass.workspace = workspace.device;
  double worst = 0.0;
  const nq_status status = nq_cuda_forward(&pass, nullptr);
  if (status != NQ_OK || nq_cuda_synchronize(nullptr) != NQ_OK) {
    printf("FAILED: %s %s\n", nq_status_text(status), nq_cuda_error_text());
    worst = INFINITY;
  }
  for (int i = 0; i < c.count; ++i) {
    y[i]->download();
    const double error = worst_row(pass, *layers[i], i, x, weight, *y[i], *residual[i]);
    if (!(error <= worst)) worst = error;
    delete layers[i];
    delete y[i];
    delete residual[i];
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  nq_cuda_device device = {};
  if (nq_cuda_describe(&device) != NQ_OK) {
    printf("no usable GPU: %s\n", nq_cuda_error_text());
    return 77;
  }
  const char* names[] = {"auto", "gemv_bits", "gemv_bytes", "gemm_mma", "gemm_wgmma"};
  const Case cases[] = {
      {65, 1, 1, NQ_FLOAT16, NQ_FLOAT16, NQ_INPUT_PLAIN, false},
      {576, 1, 3, NQ_BFLOAT16, NQ_BFLOAT16, NQ_INPUT_RMS_NORM, false},
      {576, 3, 4, NQ_FLOAT16, NQ_FLOAT32, NQ_INPUT_PLAIN, true},
      {1536, 2, 1, NQ_BFLOAT16, NQ_BFLOAT16, NQ_INPUT_SILU, true},
      {130, 8, 4, NQ_FLOAT16, NQ_FLOAT16, NQ_INPUT_RMS_NORM, true},
      {256, 17, 2, NQ_BFLOAT16, NQ_FLOAT32, NQ_INPUT_GELU, true},
      {300, 65, 2, NQ_FLOAT16, NQ_FLOAT16, NQ_INPUT_PLAIN, false},
      {96, 130, 1, NQ_BFLOAT16, NQ_BFLOAT16, NQ_INPUT_PLAIN, true},
  };
  for (int algorithm = 0; algorithm <= NQ_ALGORITHM_GEMM_WGMMA; ++algorithm) {
    // An argument names the one algorithm to run.
    if (argc > 1 && strcmp(argv[1], names[algorithm]) != 0) continue;
    if (algorithm == NQ_ALGORITHM_GEMV_BITS && !device.one_bit_tensor_cores) continue;
    if (algorithm == NQ_ALGORITHM_GEMM_WGMMA && !device.warpgroup_mma) continue;
    for (const Case& c : cases) {
      // Few outputs of bfloat16 round up to 2^-8 together.
      const double limit = c.y_type == NQ_BFLOAT16 ? 4.5e-3 : 1e-3;
      const double error = run(c, nq_algorithm(algorithm));
      const bool good = error <= limit;
      if (!good) ++failures;
      printf("%s %-10s in %4d rows %3d group %d: error %.2e\n", good ? "ok    " : "FAILED",
             names[algorithm], int(c.n), int(c.rows), c.count, error);
    }
  }
  printf("sm_%d: %d failures\n", device.compute_capability, failures);
  return failures == 0 ? 0 : 1;
}
