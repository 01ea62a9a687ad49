// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs of a node, as every operator reads them from ONNX Runtime.

#ifndef NQ_ORT_TENSORS_H
#define NQ_ORT_TENSORS_H

#include "../kernels/nq_kernels.h"
#include "ort_abi.h"

constexpr size_t kMaxDimensions = 16;

// Type and dimensions of one tensor.
struct TensorShape {
  ort::ElementType type;
  size_t count;
  int64_t dims[kMaxDimensions];
};

// Reads a required integer attribute and refuses what is outside [low, high].
ort::Status* read_integer(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                          int64_t low, int64_t high, int64_t* value);

// Reads a tensor's type and dimensions.
ort::Status* read_shape(const ort::Api* api, const ort::Value* value, TensorShape* shape);

// The address of a tensor's elements.
ort::Status* read_data(const ort::Api* api, const ort::Value* value, void** data);

// Reads the shape and the address of input `index` of a node, which has to be a constant.
ort::Status* read_constant(const ort::Api* api, const ort::KernelInfo* info, size_t index,
                           TensorShape* shape, void** data);

// Reads the shape and the address of input `index` of a call.
ort::Status* read_input(const ort::Api* api, const ort::KernelContext* context, size_t index,
                        TensorShape* shape, void** data);

// Asks a call for output `index` with these dimensions, and for its address.
ort::Status* make_output(const ort::Api* api, ort::KernelContext* context, size_t index,
                         const TensorShape& shape, void** data);

// The kernels' name of an element type; X and scale types only.
nq_type kernel_type(ort::ElementType type);

#endif  // NQ_ORT_TENSORS_H
