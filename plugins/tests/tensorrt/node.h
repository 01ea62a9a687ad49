// SPDX-License-Identifier: Apache-2.0
//
// One node of a network: its attributes as fields and its tensors' descriptions.

#ifndef NQ_TESTS_TENSORRT_NODE_H
#define NQ_TESTS_TENSORRT_NODE_H

#include "host.h"
#include "layer.h"

namespace conformance {

using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

struct Projection {
  int64_t rank, m;
  bool mid, bias;
};

struct Case {
  const char* op;
  int64_t n;
  std::vector<Projection> projections;
  DataType x, scale;
};

inline std::string describe(const Case& c) {
  std::string text = std::string(c.op) + " n=" + std::to_string(c.n);
  for (const Projection& p : c.projections) {
    text += " r=" + std::to_string(p.rank) + " m=" + std::to_string(p.m);
  }
  const char* names[] = {"f32", "f16", "", "", "", "", "", "bf16"};
  return text + " x=" + names[static_cast<int>(c.x)] + " s=" + names[static_cast<int>(c.scale)];
}

inline PluginTensorDesc describe(DataType type, const Dims& shape) {
  PluginTensorDesc tensor = {};
  tensor.dims = shape;
  tensor.type = type;
  tensor.format = TensorFormat::kLINEAR;
  tensor.scale = 1.0f;
  return tensor;
}

struct Node {
  explicit Node(const Case& c) : of(c) {
    for (const Projection& p : c.projections) {
      layers.push_back(std::make_unique<Layer>(c.n, p.rank, p.m, c.scale, p.mid, p.bias));
      for (Tensor* tensor : layers.back()->tensors()) weights.push_back(tensor);
    }
  }
  int32_t inputs() const { return 1 + static_cast<int32_t>(weights.size()); }
  int32_t outputs() const { return static_cast<int32_t>(layers.size()); }

  Fields fields() const {
    const bool group = of.op == std::string("NanoQuantLinearGroup");
    std::vector<int32_t> ranks, out, mid, bias;
    for (const Projection& p : of.projections) {
      ranks.push_back(static_cast<int32_t>(p.rank));
      out.push_back(static_cast<int32_t>(p.m));
      mid.push_back(p.mid);
      bias.push_back(p.bias);
    }
    Fields all;
    all.add("in_features", std::vector<int32_t>{static_cast<int32_t>(of.n)});
    all.add(group ? "ranks" : "rank", ranks);
    all.add("out_features", out);
    all.add("has_scale_mid", mid);
    all.add("has_bias", bias);
    all.add("layout", std::vector<int32_t>{1});
    return all;
  }
  // Inputs and then outputs for X of [batch, length, n].
  std::vector<PluginTensorDesc> tensors(int64_t batch, int64_t length) const {
    std::vector<PluginTensorDesc> all = {describe(of.x, dims({batch, length, of.n}))};
    for (const Tensor* weight : weights) all.push_back(describe(weight->type, weight->shape));
    for (const auto& layer : layers) all.push_back(describe(of.x, dims({batch, length, layer->m})));
    return all;
  }
  // The same while an engine is built: the first two dimensions run from 1 to the ones given.
  std::vector<DynamicPluginTensorDesc> profile(int64_t batch, int64_t length) const {
    std::vector<DynamicPluginTensorDesc> all;
    int32_t index = 0;
    for (const PluginTensorDesc& tensor : tensors(batch, length)) {
      const bool dynamic = index == 0 || index >= inputs();
      DynamicPluginTensorDesc one = {tensor, tensor.dims, tensor.dims, tensor.dims};
      if (dynamic) {
        one.desc.dims.d[0] = one.desc.dims.d[1] = -1;
        one.min.d[0] = one.min.d[1] = 1;
      }
      all.push_back(one);
      ++index;
    }
    return all;
  }
  Case of;
  std::vector<std::unique_ptr<Layer>> layers;
  std::vector<Tensor*> weights;
};

}  // namespace conformance

#endif  // NQ_TESTS_TENSORRT_NODE_H
