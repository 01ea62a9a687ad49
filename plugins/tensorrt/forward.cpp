// SPDX-License-Identifier: Apache-2.0

#include "forward.h"

namespace nq_tensorrt {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr size_t kAlign = 256;
constexpr size_t kElement = 2;   // bytes of an element of X and Y
constexpr int64_t kSpacing = 8;  // elements in 16 bytes

size_t round_up(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t spaced(int64_t columns) { return (columns + kSpacing - 1) / kSpacing * kSpacing; }

// A lone row may have any length: see nq_cuda_pass.
bool needs_copy(int64_t columns, int64_t rows) { return rows > 1 && columns % kSpacing != 0; }

size_t copy_bytes(int64_t columns, int64_t rows) {
  if (!needs_copy(columns, rows)) return 0;
  return round_up(static_cast<size_t>(rows) * static_cast<size_t>(spaced(columns)) * kElement);
}

// Sizes and types only; pointers come later.
struct Call {
  nq_linear layers[NQ_CUDA_MAX_GROUP];
  nq_cuda_pass pass;
};

void describe(const Attributes& attributes, DataType x_type, DataType scale_type, int64_t rows,
              Call* call) {
  *call = Call{};
  for (int32_t i = 0; i < attributes.count; ++i) {
    nq_linear& layer = call->layers[i];
    layer.in_features = attributes.in_features;
    layer.rank = attributes.rank[i];
    layer.out_features = attributes.out_features[i];
    layer.layout = NQ_LAYOUT_TILES_16X256;
    layer.scale_type = kernel_type(scale_type);
  }
  call->pass.layers = call->layers;
  call->pass.count = attributes.count;
  call->pass.x_type = call->pass.y_type = kernel_type(x_type);
  call->pass.rows = rows;
}

nq_status copy_rows(const void* from, int64_t from_pitch, void* to, int64_t to_pitch,
                    int64_t columns, int64_t rows, void* stream) {
  const auto bytes = [](int64_t elements) { return static_cast<size_t>(elements) * kElement; };
  return nq_cuda_copy_rows(from, bytes(from_pitch), to, bytes(to_pitch), bytes(columns),
                           static_cast<size_t>(rows), stream);
}

}  // namespace

size_t workspace_bound(const Attributes& attributes, DataType x_type, DataType scale_type,
                       int64_t rows) {
  if (rows < 1) return 0;
  if (rows > NQ_MAX_DIM) rows = NQ_MAX_DIM;
  Call call;
  describe(attributes, x_type, scale_type, rows, &call);
  size_t bytes = round_up(nq_cuda_workspace_bound(&call.pass)) + kAlign;
  bytes += copy_bytes(attributes.in_features, rows);
  for (int32_t i = 0; i < attributes.count; ++i) {
    bytes += copy_bytes(attributes.out_features[i], rows);
  }
  return bytes;
}

nq_status forward(const Attributes& attributes, const PluginTensorDesc* inputs,
                  const void* const* data, void* const* outputs, void* workspace, void* stream) {
  const int64_t rows = rows_of(inputs[0].dims);
  if (rows == 0) return NQ_OK;
  Call call;
  describe(attributes, inputs[0].type, inputs[input_of(0, kScaleIn)].type, rows, &call);
  nq_cuda_pass& pass = call.pass;
  for (int32_t i = 0; i < attributes.count; ++i) {
    nq_linear& layer = call.layers[i];
    layer.v_words = static_cast<const int32_t*>(data[input_of(i, kV)]);
    layer.u_words = static_cast<const int32_t*>(data[input_of(i, kU)]);
    layer.scale_in = data[input_of(i, kScaleIn)];
    layer.scale_mid = attributes.has_scale_mid[i] ? data[input_of(i, kScaleMid)] : nullptr;
    layer.scale_out = data[input_of(i, kScaleOut)];
    layer.bias = attributes.has_bias[i] ? data[input_of(i, kBias)] : nullptr;
  }
  const size_t start = reinterpret_cast<uintptr_t>(workspace);
  char* free_space = static_cast<char*>(workspace) + (round_up(start) - start);
  pass.workspace = free_space;
  pass.workspace_bytes = nq_cuda_workspace_bytes(&pass);
  free_space += round_up(pass.workspace_bytes);

  const int64_t n = attributes.in_features;
  pass.x = data[0];
  pass.x_stride = n;
  nq_status status = NQ_OK;
  if (needs_copy(n, rows)) {
    status = copy_rows(data[0], n, free_space, spaced(n), n, rows, stream);
    pass.x = free_space;
    pass.x_stride = spaced(n);
    free_space += copy_bytes(n, rows);
  }
  for (int32_t i = 0; i < attributes.count; ++i) {
    const int64_t m = attributes.out_features[i];
    pass.y[i] = outputs[i];
    pass.y_stride[i] = m;
    if (needs_copy(m, rows)) {
      pass.y[i] = free_space;
      pass.y_stride[i] = spaced(m);
      free_space += copy_bytes(m, rows);
    }
  }
  if (status == NQ_OK) status = nq_cuda_forward(&pass, stream);
  for (int32_t i = 0; status == NQ_OK && i < attributes.count; ++i) {
    if (pass.y[i] == outputs[i]) continue;
    const int64_t m = attributes.out_features[i];
    status = copy_rows(pass.y[i], spaced(m), outputs[i], m, m, rows, stream);
  }
  return status;
}

}  // namespace nq_tensorrt
