// SPDX-License-Identifier: Apache-2.0
//
// What the library exports: the two functions that TensorRT's registry looks for when it loads a
// plugin library, and for Python a description and the last error.

#include "creator.h"
#include "log.h"

#define NQ_EXPORT extern "C" __attribute__((visibility("default")))

// TensorRT wants this function to exist; log.h says why it does nothing.
NQ_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

NQ_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nq_tensorrt::Creator linear(nq_tensorrt::Operator::kLinear);
  static nq_tensorrt::Creator group(nq_tensorrt::Operator::kGroup);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&linear, &group};
  count = sizeof creators / sizeof creators[0];
  return creators;
}

#define NQ_TEXT_OF(value) #value
#define NQ_TEXT(value) NQ_TEXT_OF(value)

NQ_EXPORT const char* nq_tensorrt_info(void) {
  return "{\"version\": \"" NQ_VERSION "\", \"architectures\": \"" NQ_ARCHITECTURES
         "\", \"headers\": \"" NQ_TEXT(NV_TENSORRT_MAJOR) "." NQ_TEXT(NV_TENSORRT_MINOR) "." NQ_TEXT(
             NV_TENSORRT_PATCH) "\", \"operators\": [\"NanoQuantLinear\", "
                                "\"NanoQuantLinearGroup\"], \"plugin_version\": \"1\", "
                                "\"plugin_namespace\": \"com.nanoquant\"}";
}

NQ_EXPORT const char* nq_tensorrt_last_error(void) { return nq_tensorrt::last_error(); }
