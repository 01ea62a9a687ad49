// SPDX-License-Identifier: Apache-2.0
//
// The attributes of NanoQuantLinear and NanoQuantLinearGroup, version 1 (docs/OPERATOR.md): read
// from TensorRT's fields, checked, and written back as the fields that an engine keeps.

#ifndef NQ_TENSORRT_ATTRIBUTES_H
#define NQ_TENSORRT_ATTRIBUTES_H

#include <NvInferRuntime.h>

#include "../kernels/nq_cuda.h"

namespace nq_tensorrt {

// The two operators.
enum class Operator { kLinear, kGroup };

constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "com.nanoquant";

// Name of the operator, which is the plugin's.
const char* name_of(Operator op);

// One entry a projection; NanoQuantLinear has one projection.
struct Attributes {
  int32_t in_features;
  int32_t layout;
  int32_t count;
  int32_t rank[NQ_CUDA_MAX_GROUP];
  int32_t out_features[NQ_CUDA_MAX_GROUP];
  int32_t has_scale_mid[NQ_CUDA_MAX_GROUP];
  int32_t has_bias[NQ_CUDA_MAX_GROUP];
};

// Room for the fields of either operator.
constexpr int32_t kMaxFields = 7;

// The field names that a creator declares; the parser passes no attribute besides them.
int32_t declared_fields(Operator op, nvinfer1::PluginField* fields);

// Reads and checks the fields. False, with the reason in `why`, when one is missing, has another
// type or length, holds what the schema does not allow, or names another build of this library.
bool read_fields(Operator op, const nvinfer1::PluginFieldCollection* from, Attributes* attributes,
                 char* why, size_t why_bytes);

// The fields that make the same attributes again; they point into `attributes`. Returns how many.
int32_t write_fields(Operator op, const Attributes& attributes, nvinfer1::PluginField* fields);

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_ATTRIBUTES_H
