// SPDX-License-Identifier: Apache-2.0
//
// Makes plugins for TensorRT's registry: at build time from a node's attributes, at run time from
// the fields that an engine kept.

#ifndef NQ_TENSORRT_CREATOR_H
#define NQ_TENSORRT_CREATOR_H

#include "attributes.h"

namespace nq_tensorrt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Operator op) noexcept;

  // Null, with the reason logged, when the fields are not what the schema asks for.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* from,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  Operator op_;
  nvinfer1::PluginField fields_[kMaxFields];
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_CREATOR_H
