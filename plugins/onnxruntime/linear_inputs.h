// SPDX-License-Identifier: Apache-2.0
//
// The attributes and inputs of com.nanoquant::NanoQuantLinear version 1, and the checks that stand
// between a model file and the kernels.

#ifndef NQ_ORT_LINEAR_INPUTS_H
#define NQ_ORT_LINEAR_INPUTS_H

#include "../kernels/nq_kernels.h"
#include "ort_abi.h"

// Positions of the seven inputs.
enum LinearInput : size_t {
  kInputX = 0,
  kInputV = 1,
  kInputU = 2,
  kInputScaleIn = 3,
  kInputScaleMid = 4,
  kInputScaleOut = 5,
  kInputBias = 6,
  kInputCount = 7
};

constexpr size_t kMaxDimensions = 16;

// The node's integer attributes, all required.
struct LinearAttributes {
  int64_t in_features;
  int64_t rank;
  int64_t out_features;
  int64_t has_scale_mid;
  int64_t has_bias;
  int64_t layout;
};

// Type and dimensions of one tensor.
struct TensorShape {
  ort::ElementType type;
  size_t count;
  int64_t dims[kMaxDimensions];
};

// Reads a required integer attribute and refuses what is outside [low, high].
ort::Status* read_integer(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                          int64_t low, int64_t high, int64_t* value);

// Reads the attributes and refuses sizes, flags or layouts outside the schema.
ort::Status* read_attributes(const ort::Api* api, const ort::KernelInfo* info,
                             LinearAttributes* attributes);

// Reads a tensor's type and dimensions.
ort::Status* read_shape(const ort::Api* api, const ort::Value* value, TensorShape* shape);

// Checks that input `index` (1 to 6) has the type and dimensions that the attributes promise.
// `scale_type` is the element type shared by the three scales and the bias.
ort::Status* check_weight(const ort::Api* api, const LinearAttributes& attributes,
                          ort::ElementType scale_type, size_t index, const TensorShape& shape);

// Checks X and gives the number of rows: the product of all dimensions but the last.
ort::Status* check_x(const ort::Api* api, const LinearAttributes& attributes,
                     ort::ElementType x_type, const TensorShape& shape, int64_t* rows);

// The kernels' name of an element type; X and scale types only.
nq_type kernel_type(ort::ElementType type);

#endif  // NQ_ORT_LINEAR_INPUTS_H
