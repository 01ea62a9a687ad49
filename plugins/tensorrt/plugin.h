// SPDX-License-Identifier: Apache-2.0
//
// The TensorRT plugin behind NanoQuantLinear and NanoQuantLinearGroup: one class, since a lone
// layer is a group of one.
//
// Written to the IPluginV3 interfaces that TensorRT 10.0 introduced and 11 and TensorRT-RTX kept.
// It holds attributes only, no GPU memory and no handles, so that clones and contexts are copies.

#ifndef NQ_TENSORRT_PLUGIN_H
#define NQ_TENSORRT_PLUGIN_H

#include "attributes.h"

namespace nq_tensorrt {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // `layer` names the node in messages.
  Plugin(Operator op, const Attributes& attributes, const char* layer) noexcept;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                             const nvinfer1::DataType* inputs,
                             int32_t count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t index, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t count, int32_t output_count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t output_count) const noexcept override;
  // Layers of one size are timed once.
  const char* getTimingCacheID() noexcept override;
  // What the engine inspector shows: the same text.
  const char* getMetadataString() noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t count,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs,
                  const nvinfer1::PluginTensorDesc* outputs, const void* const* input_data,
                  void* const* output_data, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  bool counts_fit(int32_t count, int32_t output_count) const noexcept;
  bool tensor_fits(int32_t index, const nvinfer1::Dims& dims) const noexcept;

  Operator op_;
  Attributes attributes_;
  char layer_[128];
  char description_[256];
  nvinfer1::PluginField fields_[kMaxFields];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_PLUGIN_H
