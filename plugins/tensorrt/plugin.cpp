// SPDX-License-Identifier: Apache-2.0

#include "plugin.h"

#include <stdio.h>

#include <new>

#include "forward.h"
#include "log.h"

namespace nq_tensorrt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginCapability;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace {

constexpr int32_t kDone = 0, kFailed = 1;

// Dimensions of a tensor while an engine is built: where one is dynamic, the profile's largest.
Dims largest(const DynamicPluginTensorDesc& tensor) {
  Dims dims = tensor.desc.dims;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    if (dims.d[i] < 0 && i < tensor.max.nbDims) dims.d[i] = tensor.max.d[i];
  }
  return dims;
}

}  // namespace

Plugin::Plugin(Operator op, const Attributes& attributes, const char* layer) noexcept
    : op_(op), attributes_(attributes), fields_{}, collection_{} {
  snprintf(layer_, sizeof layer_, "%s", layer != nullptr ? layer : "");
  const int size = sizeof description_;
  int used = snprintf(description_, sizeof description_, "%s %s n=%d", name_of(op), NQ_VERSION,
                      attributes.in_features);
  for (int32_t i = 0; i < attributes.count && used < size; ++i) {
    used +=
        snprintf(description_ + used, static_cast<size_t>(size - used), " r=%d m=%d%s%s",
                 attributes.rank[i], attributes.out_features[i],
                 attributes.has_scale_mid[i] ? " mid" : "", attributes.has_bias[i] ? " bias" : "");
  }
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(op_, attributes_, layer_); }

const char* Plugin::getPluginName() const noexcept { return name_of(op_); }
const char* Plugin::getPluginVersion() const noexcept { return kVersion; }
const char* Plugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return attributes_.count; }

bool Plugin::counts_fit(int32_t count, int32_t output_count) const noexcept {
  if (count == input_count(attributes_.count) && output_count == attributes_.count) return true;
  log_error(name_of(op_), layer_, "%d inputs and %d outputs, and %d projections have %d and %d",
            count, output_count, attributes_.count, input_count(attributes_.count),
            attributes_.count);
  return false;
}

bool Plugin::tensor_fits(int32_t index, const Dims& dims) const noexcept {
  char why[320];
  if (dims_fit(attributes_, index, dims, why, sizeof why)) return true;
  log_error(name_of(op_), layer_, "%s", why);
  return false;
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t count) const noexcept {
  if (outputs == nullptr || inputs == nullptr || !counts_fit(count, output_count)) return kFailed;
  for (int32_t i = 0; i < count + output_count; ++i) {
    const DataType type = i < count ? inputs[i] : inputs[0];
    if (type_fits(attributes_, i, type, inputs[0], inputs[input_of(0, kScaleIn)])) continue;
    log_error(name_of(op_), layer_,
              "input %d has a type that this plugin does not take: X is float16 or bfloat16, "
              "packed words are int32, scales and biases share one of float16, bfloat16, float32",
              i);
    return kFailed;
  }
  for (int32_t i = 0; i < output_count; ++i) outputs[i] = inputs[0];
  return kDone;
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t count, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder& builder) noexcept {
  if (inputs == nullptr || outputs == nullptr || !counts_fit(count, output_count)) return kFailed;
  if (inputs[0].nbDims < 1) return kFailed;
  for (int32_t i = 0; i < output_count; ++i) {
    outputs[i] = inputs[0];
    outputs[i].d[inputs[0].nbDims - 1] = builder.constant(attributes_.out_features[i]);
  }
  return kDone;
}

bool Plugin::supportsFormatCombination(int32_t index, const DynamicPluginTensorDesc* tensors,
                                       int32_t count, int32_t output_count) noexcept {
  if (tensors == nullptr || index < 0 || index >= count + output_count) return false;
  if (count != input_count(attributes_.count) || output_count != attributes_.count) return false;
  const PluginTensorDesc& tensor = tensors[index].desc;
  // Tensors after `index` are not filled in yet.
  const int32_t first_scale = input_of(0, kScaleIn);
  const DataType scale = tensors[index < first_scale ? index : first_scale].desc.type;
  return tensor.format == TensorFormat::kLINEAR &&
         type_fits(attributes_, index, tensor.type, tensors[0].desc.type, scale);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t count,
                                const DynamicPluginTensorDesc* outputs,
                                int32_t output_count) noexcept {
  if (inputs == nullptr || outputs == nullptr || !counts_fit(count, output_count)) return kFailed;
  for (int32_t i = 0; i < count + output_count; ++i) {
    if (!tensor_fits(i, largest(i < count ? inputs[i] : outputs[i - count]))) return kFailed;
  }
  return kDone;
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t count,
                                const DynamicPluginTensorDesc*,
                                int32_t output_count) const noexcept {
  if (inputs == nullptr || !counts_fit(count, output_count)) return 0;
  return workspace_bound(attributes_, inputs[0].desc.type, inputs[input_of(0, kScaleIn)].desc.type,
                         rows_of(largest(inputs[0])));
}

const char* Plugin::getTimingCacheID() noexcept { return description_; }
const char* Plugin::getMetadataString() noexcept { return description_; }

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t count,
                              const PluginTensorDesc* outputs, int32_t output_count) noexcept {
  if (inputs == nullptr || outputs == nullptr || !counts_fit(count, output_count)) return kFailed;
  for (int32_t i = 0; i < count + output_count; ++i) {
    if (!tensor_fits(i, i < count ? inputs[i].dims : outputs[i - count].dims)) return kFailed;
  }
  return kDone;
}

int32_t Plugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                        const void* const* input_data, void* const* output_data, void* workspace,
                        cudaStream_t stream) noexcept {
  if (inputs == nullptr || input_data == nullptr || output_data == nullptr) return kFailed;
  const nq_status status = forward(attributes_, inputs, input_data, output_data, workspace, stream);
  if (status == NQ_OK) return kDone;
  log_error(name_of(op_), layer_, "%s %s", nq_status_text(status),
            status == NQ_CUDA_ERROR || status == NQ_NO_KERNEL ? nq_cuda_error_text() : "");
  return kFailed;
}

IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  collection_.nbFields = write_fields(op_, attributes_, fields_);
  collection_.fields = fields_;
  return &collection_;
}

}  // namespace nq_tensorrt
