// SPDX-License-Identifier: Apache-2.0

#include "creator.h"

#include <new>

#include "log.h"
#include "plugin.h"

namespace nq_tensorrt {

Creator::Creator(Operator op) noexcept : op_(op), fields_{}, collection_{} {
  collection_.nbFields = declared_fields(op, fields_);
  collection_.fields = fields_;
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name,
                                           const nvinfer1::PluginFieldCollection* from,
                                           nvinfer1::TensorRTPhase) noexcept {
  Attributes attributes;
  char why[320];
  if (!read_fields(op_, from, &attributes, why, sizeof why)) {
    log_error(name_of(op_), name != nullptr ? name : "", "%s", why);
    return nullptr;
  }
  nvinfer1::IPluginV3* plugin = new (std::nothrow) Plugin(op_, attributes, name);
  if (plugin == nullptr) log_error(name_of(op_), "", "out of memory");
  return plugin;
}

const nvinfer1::PluginFieldCollection* Creator::getFieldNames() noexcept { return &collection_; }
const char* Creator::getPluginName() const noexcept { return name_of(op_); }
const char* Creator::getPluginVersion() const noexcept { return kVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace nq_tensorrt
