// SPDX-License-Identifier: Apache-2.0
//
// The attributes and inputs of com.nanoquant::NanoQuantLinear version 1, and the checks that stand
// between a model file and the kernels.

#ifndef NQ_ORT_LINEAR_INPUTS_H
#define NQ_ORT_LINEAR_INPUTS_H

#include "tensors.h"

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

// The node's integer attributes, all required.
struct LinearAttributes {
  int64_t in_features;
  int64_t rank;
  int64_t out_features;
  int64_t has_scale_mid;
  int64_t has_bias;
  int64_t layout;
};

// Reads the attributes and refuses sizes, flags or layouts outside the schema.
ort::Status* read_attributes(const ort::Api* api, const ort::KernelInfo* info,
                             LinearAttributes* attributes);

// Checks that input `index` (1 to 6) has the type and dimensions that the attributes promise.
// `scale_type` is the element type shared by the three scales and the bias.
ort::Status* check_weight(const ort::Api* api, const LinearAttributes& attributes,
                          ort::ElementType scale_type, size_t index, const TensorShape& shape);

// Checks X and gives the number of rows: the product of all dimensions but the last.
ort::Status* check_x(const ort::Api* api, const LinearAttributes& attributes,
                     ort::ElementType x_type, const TensorShape& shape, int64_t* rows);

// The layer as the kernels' interface describes it, from the addresses of its seven inputs.
nq_linear describe_layer(const LinearAttributes& attributes, ort::ElementType scale_type,
                         const void* const* data);

#endif  // NQ_ORT_LINEAR_INPUTS_H
