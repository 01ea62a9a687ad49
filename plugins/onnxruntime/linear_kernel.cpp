// SPDX-License-Identifier: Apache-2.0

#include "linear_kernel.h"

#include "status.h"

ort::Status* prepare_kernel(const ort::CustomOp* op, const ort::Api* api,
                            const ort::KernelInfo* info, LinearKernel* kernel) {
  kernel->api = api;
  kernel->x_type = variant_of(op)->x_type;
  kernel->scale_type = variant_of(op)->scale_type;
  NQ_ORT_RETURN(read_attributes(api, info, &kernel->attributes));
  size_t inputs = 0;
  NQ_ORT_RETURN(
      ort::call<ort::InfoGetInputCount>(api, ort::kKernelInfoGetInputCount)(info, &inputs));
  if (inputs != kInputCount) {
    return ort::fail(api, ort::kInvalidGraph, "the node has %zu inputs, expected 7", inputs);
  }
  for (size_t i = kInputV; i < kInputCount; ++i) {
    int constant = 0;
    const ort::Value* value = nullptr;
    NQ_ORT_RETURN(ort::call<ort::InfoGetConstantInput>(api, ort::kKernelInfoGetConstantInput)(
        info, i, &constant, &value));
    kernel->checked[i] = constant != 0 && value != nullptr;
    if (kernel->checked[i]) {
      TensorShape shape;
      NQ_ORT_RETURN(read_shape(api, value, &shape));
      NQ_ORT_RETURN(check_weight(api, kernel->attributes, kernel->scale_type, i, shape));
    }
  }
  return nullptr;
}

ort::Status* read_call(const LinearKernel& kernel, ort::KernelContext* context, LinearCall* call) {
  const ort::Api* api = kernel.api;
  const LinearAttributes& attributes = kernel.attributes;
  size_t inputs = 0;
  NQ_ORT_RETURN(ort::call<ort::ContextGetInputCount>(api, ort::kKernelContextGetInputCount)(
      context, &inputs));
  if (inputs != kInputCount) {
    return ort::fail(api, ort::kInvalidGraph, "the node has %zu inputs, expected 7", inputs);
  }
  for (size_t i = 0; i < kInputCount; ++i) {
    const ort::Value* value = nullptr;
    NQ_ORT_RETURN(
        ort::call<ort::ContextGetInput>(api, ort::kKernelContextGetInput)(context, i, &value));
    if (i == kInputX) {
      NQ_ORT_RETURN(read_shape(api, value, &call->x_shape));
      NQ_ORT_RETURN(check_x(api, attributes, kernel.x_type, call->x_shape, &call->rows));
    } else if (!kernel.checked[i]) {
      TensorShape shape;
      NQ_ORT_RETURN(read_shape(api, value, &shape));
      NQ_ORT_RETURN(check_weight(api, attributes, kernel.scale_type, i, shape));
    }
    NQ_ORT_RETURN(read_data(api, value, &call->data[i]));
  }
  TensorShape& shape = call->x_shape;
  shape.dims[shape.count - 1] = attributes.out_features;
  return make_output(api, context, 0, shape, &call->y);
}
