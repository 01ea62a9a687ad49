// SPDX-License-Identifier: Apache-2.0
//
// A few small passes for compute-sanitizer, without torch: every block shape, both precisions, a
// group of two projections, odd sizes, against float64 on the CPU.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../kernels/nq_cuda.h"
#include "cuda_runtime.h"

extern "C" int nq_forced_shape[2];

namespace {

uint32_t g_state = 1;
uint32_t draw() {
  g_state = g_state * 1664525u + 1013904223u;
  return g_state ^ g_state >> 15;
}
float draw_float() { return static_cast<float>(draw() >> 8) / 8388608.0f - 1.0f; }

template <typename T>
T* on_device(const std::vector<T>& values) {
  void* pointer = nullptr;
  if (cudaMalloc(&pointer, values.size() * sizeof(T)) != cudaSuccess) exit(3);
  cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(pointer);
}

int32_t* tiles_of(const std::vector<int32_t>& words, int64_t rows, int64_t columns) {
  int32_t* from = on_device(words);
  int32_t* to = on_device(std::vector<int32_t>(nq_cuda_tile_words(rows, columns)));
  if (nq_cuda_make_tiles(from, rows, columns, to, nullptr) != NQ_OK) exit(4);
  return to;
}

double sign(const std::vector<int32_t>& words, int64_t columns, int64_t row, int64_t column) {
  const uint32_t word = words[row * ((columns + 31) / 32) + column / 32];
  return word >> (column % 32) & 1 ? -1.0 : 1.0;
}

double run(int rows, int n, int r, int m, nq_precision precision, int shape) {
  nq_forced_shape[0] = nq_forced_shape[1] = shape;
  constexpr int kCount = 2;
  nq_linear layers[kCount] = {};
  std::vector<int32_t> v[kCount], u[kCount];
  std::vector<float> in[kCount], out[kCount];
  nq_cuda_pass pass = {};
  const int64_t stride = (n + 7) / 8 * 8, y_stride = (m + 3) / 4 * 4;
  std::vector<uint16_t> x(rows * stride);
  for (auto& value : x) value = 0x3c00 | (draw() & 0x83ff);  // 1 to 2, either sign
  for (int i = 0; i < kCount; ++i) {
    v[i].resize(static_cast<size_t>(r) * ((n + 31) / 32));
    u[i].resize(static_cast<size_t>(m) * ((r + 31) / 32));
    for (auto& word : v[i]) word = static_cast<int32_t>(draw());
    for (auto& word : u[i]) word = static_cast<int32_t>(draw());
    in[i].resize(n), out[i].resize(m);
    for (auto& value : in[i]) value = draw_float();
    for (auto& value : out[i]) value = draw_float();
    layers[i] = {n,
                 r,
                 m,
                 NQ_LAYOUT_TILES_16X256,
                 NQ_FLOAT32,
                 tiles_of(v[i], r, n),
                 tiles_of(u[i], m, r),
                 on_device(in[i]),
                 nullptr,
                 on_device(out[i]),
                 nullptr};
    pass.y[i] = on_device(std::vector<float>(rows * y_stride, NAN));
    pass.y_stride[i] = y_stride;
  }
  pass.layers = layers, pass.count = kCount, pass.x_type = NQ_FLOAT16, pass.y_type = NQ_FLOAT32;
  pass.precision = precision, pass.algorithm = NQ_ALGORITHM_GEMM_MMA, pass.rows = rows;
  pass.x = on_device(x), pass.x_stride = stride;
  pass.workspace_bytes = nq_cuda_workspace_bytes(&pass);
  if (cudaMalloc(&pass.workspace, pass.workspace_bytes) != cudaSuccess) exit(3);
  if (nq_cuda_forward(&pass, nullptr) != NQ_OK) {
    printf("forward: %s\n", nq_cuda_error_text());
    exit(5);
  }
  double worst = 0.0;
  std::vector<float> y(rows * y_stride);
  for (int i = 0; i < kCount; ++i) {
    cudaMemcpy(y.data(), pass.y[i], y.size() * 4, cudaMemcpyDeviceToHost);
    for (int row = 0; row < rows; ++row) {
      std::vector<double> middle(r);
      double error = 0.0, size = 0.0;
      for (int k = 0; k < r; ++k) {
        for (int c = 0; c < n; ++c) {
          const uint16_t bits = x[row * stride + c];
          const double value = (bits & 0x8000 ? -1.0 : 1.0) * (1.0 + (bits & 0x3ff) / 1024.0);
          middle[k] += value * in[i][c] * sign(v[i], n, k, c);
        }
      }
      for (int o = 0; o < m; ++o) {
        double want = 0.0;
        for (int k = 0; k < r; ++k) want += middle[k] * sign(u[i], r, o, k);
        want *= out[i][o];
        const double got = y[row * y_stride + o];
        error += (got - want) * (got - want), size += want * want;
      }
      const double relative = std::sqrt(error / size);
      if (!(relative <= worst)) worst = relative;
    }
  }
  return worst;
}

}  // namespace

int main() {
  bool good = true;
  for (int shape = 0; shape < 6; ++shape) {
    for (int precision = 0; precision < 2; ++precision) {
      const int rows = 9 + 13 * shape, n = 1290 + 7 * shape, r = 270 + shape, m = 150 + shape;
      const double error = run(rows, n, r, m, static_cast<nq_precision>(precision), shape);
      printf("shape %d precision %d: %.2e\n", shape, precision, error);
      good = good && error < (precision ? 3e-2 : 2e-4);
    }
  }
  const cudaError_t last = cudaDeviceSynchronize();
  printf("%s, %s\n", cudaGetErrorString(last), good ? "good" : "WRONG");
  return good && last == cudaSuccess ? 0 : 1;
}
