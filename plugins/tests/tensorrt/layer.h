// SPDX-License-Identifier: Apache-2.0
//
// Random layers for the conformance runner, their tensors as the plugin gets them, and the result
// in float64. The tiles are written from docs/OPERATOR.md ("Layout 1"), word by word.

#ifndef NQ_TESTS_TENSORRT_LAYER_H
#define NQ_TESTS_TENSORRT_LAYER_H

#include <NvInferRuntime.h>
#include <math.h>

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>
#include <vector>

#include "../../kernels/cpu/convert.h"
#include "../random.h"
#include "memory.h"

namespace conformance {

using nvinfer1::DataType;
using nvinfer1::Dims;

inline double random_value() { return random_bits() / 2147483648.0 - 1.0; }

inline size_t bytes_of(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kINT32 ? 4 : 2;
}

inline double get(const uint8_t* array, DataType type, int64_t i) {
  if (type == DataType::kFLOAT) return reinterpret_cast<const float*>(array)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(array)[i];
  return type == DataType::kHALF ? half_to_float(bits) : bfloat_to_float(bits);
}

inline Dims dims(std::initializer_list<int64_t> sizes) {
  Dims result = {};
  for (const int64_t size : sizes) result.d[result.nbDims++] = size;
  return result;
}

// A tensor, and what it holds on the host.
struct Tensor {
  Tensor(DataType type_, Dims dims_) : type(type_), shape(dims_) {
    for (int32_t i = 0; i < dims_.nbDims; ++i) count *= dims_.d[i];
    host.resize(static_cast<size_t>(count) * bytes_of(type));
  }
  void randomize(double base, double spread) {
    for (int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(base + spread * random_value());
      if (type == DataType::kFLOAT) {
        reinterpret_cast<float*>(host.data())[i] = value;
      } else {
        reinterpret_cast<uint16_t*>(host.data())[i] =
            type == DataType::kHALF ? float_to_half(value) : float_to_bfloat(value);
      }
    }
  }
  void upload() {
    device = std::make_unique<Buffer>(host.size());
    device->upload(host.data());
  }
  double at(int64_t i) const { return get(host.data(), type, i); }
  DataType type;
  Dims shape;
  int64_t count = 1;
  std::vector<uint8_t> host;
  std::unique_ptr<Buffer> device;
};

// Signs of a rows x columns matrix, and their tiles.
struct Signs {
  Signs(int64_t rows, int64_t columns_)
      : columns(columns_),
        tiles(DataType::kINT32, dims({(rows + 15) / 16, 128 * ((columns_ + 255) / 256)})) {
    negative.resize(static_cast<size_t>(rows * columns));
    uint32_t* words = reinterpret_cast<uint32_t*>(tiles.host.data());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        if (random_bits() & 1u) continue;
        negative[static_cast<size_t>(row * columns + column)] = true;
        const int64_t tile = row / 16 * ((columns + 255) / 256) + column / 256;
        const int64_t g = row % 8, lower = row % 16 / 8, w = column % 256 / 32;
        const int64_t word = 4 * (4 * g + w % 4) + 2 * (w / 4) + lower;
        words[tile * 128 + word] |= 1u << (column % 32);
      }
    }
  }
  double at(int64_t row, int64_t column) const {
    return negative[static_cast<size_t>(row * columns + column)] ? -1.0 : 1.0;
  }
  int64_t columns;
  std::vector<bool> negative;
  Tensor tiles;
};

struct Layer {
  Layer(int64_t n_, int64_t rank_, int64_t m_, DataType scale, bool mid_, bool bias_)
      : n(n_),
        rank(rank_),
        m(m_),
        has_mid(mid_),
        has_bias(bias_),
        v(rank_, n_),
        u(m_, rank_),
        in(scale, dims({n_})),
        mid(scale, dims({mid_ ? rank_ : 1})),
        out(scale, dims({m_})),
        bias(scale, dims({bias_ ? m_ : 1})) {
    in.randomize(1.0, 0.5);
    mid.randomize(1.0, mid_ ? 0.5 : 0.0);
    out.randomize(0.02, 0.01);
    bias.randomize(0.0, bias_ ? 1.0 : 0.0);
    for (Tensor* tensor : tensors()) tensor->upload();
  }
  // In the operator's order.
  std::array<Tensor*, 6> tensors() { return {&v.tiles, &u.tiles, &in, &mid, &out, &bias}; }

  // Largest relative error of a row of `y`. A row of few terms or outputs may cancel: it is
  // measured against the rows' mean square where that is larger.
  double error(const Tensor& x, const std::vector<uint8_t>& y) const {
    const int64_t rows = x.count / n;
    std::vector<double> differences, norms;
    std::vector<double> hidden(static_cast<size_t>(rank));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < rank; ++i) {
        double sum = 0.0;
        for (int64_t k = 0; k < n; ++k) sum += v.at(i, k) * x.at(row * n + k) * in.at(k);
        hidden[static_cast<size_t>(i)] = has_mid ? sum * mid.at(i) : sum;
      }
      double difference = 0.0, norm = 0.0;
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0.0;
        for (int64_t k = 0; k < rank; ++k) sum += u.at(i, k) * hidden[static_cast<size_t>(k)];
        sum = sum * out.at(i) + (has_bias ? bias.at(i) : 0.0);
        const double gap = get(y.data(), x.type, row * m + i) - sum;
        difference += gap * gap;
        norm += sum * sum;
      }
      differences.push_back(difference);
      norms.push_back(norm);
    }
    double least = 1e-30;
    if (n < kFew || rank < kFew || m < kFew) {
      least = std::accumulate(norms.begin(), norms.end(), least) / static_cast<double>(rows);
    }
    double worst = 0.0;
    for (size_t row = 0; row < norms.size(); ++row) {
      const double relative = sqrt(differences[row] / std::max(norms[row], least));
      if (!(relative <= worst)) worst = relative;  // NaN stays
    }
    return worst;
  }
  static constexpr int64_t kFew = 64;
  int64_t n, rank, m;
  bool has_mid, has_bias;
  Signs v, u;
  Tensor in, mid, out, bias;
};

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_LAYER_H
