// SPDX-License-Identifier: Apache-2.0
//
// What the CPU and the CUDA kernel of NanoQuantLinear share: the variant that a kernel belongs to,
// the checks when a session is made, and the inputs of one call.

#ifndef NQ_ORT_LINEAR_KERNEL_H
#define NQ_ORT_LINEAR_KERNEL_H

#include "linear_inputs.h"
#include "ort_abi.h"

// One registered kernel: an execution provider and a pair of types.
struct LinearVariant {
  ort::CustomOp op;  // first: the callbacks get its address
  ort::ElementType x_type;
  ort::ElementType scale_type;
};

inline const LinearVariant* variant_of(const ort::CustomOp* op) {
  return reinterpret_cast<const LinearVariant*>(op);
}

// A node of a session.
struct LinearKernel {
  const ort::Api* api;
  LinearAttributes attributes;
  ort::ElementType x_type;
  ort::ElementType scale_type;
  bool checked[kInputCount];  // constant inputs are checked once, when the session is made
};

// The inputs of one call.
struct LinearCall {
  TensorShape x_shape;
  int64_t rows;
  void* data[kInputCount];
  void* y;
};

// Reads and checks the attributes, and every input that is constant.
ort::Status* prepare_kernel(const ort::CustomOp* op, const ort::Api* api,
                            const ort::KernelInfo* info, LinearKernel* kernel);

// Checks what the session hands over and asks it for the output.
ort::Status* read_call(const LinearKernel& kernel, ort::KernelContext* context, LinearCall* call);

#endif  // NQ_ORT_LINEAR_KERNEL_H
