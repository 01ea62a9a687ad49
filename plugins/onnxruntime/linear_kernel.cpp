// SPDX-License-Identifier: Apache-2.0

#include "linear_kernel.h"

#include "status.h"

namespace {

ort::Status* data_of(const ort::Api* api, const ort::Value* value, void** data) {
  return ort::call<ort::GetMutableData>(api, ort::kGetTensorMutableData)(
      const_cast<ort::Value*>(value), data);
}

}  // namespace

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
    NQ_ORT_RETURN(data_of(api, value, &call->data[i]));
  }
  TensorShape& shape = call->x_shape;
  shape.dims[shape.count - 1] = attributes.out_features;
  ort::Value* output = nullptr;
  NQ_ORT_RETURN(ort::call<ort::ContextGetOutput>(api, ort::kKernelContextGetOutput)(
      context, 0, shape.dims, shape.count, &output));
  call->y = nullptr;
  return call->rows == 0 ? nullptr : data_of(api, output, &call->y);
}

nq_linear describe_layer(const LinearKernel& kernel, const LinearCall& call) {
  const LinearAttributes& attributes = kernel.attributes;
  return nq_linear{
      attributes.in_features,
      attributes.rank,
      attributes.out_features,
      static_cast<nq_layout>(attributes.layout),
      kernel_type(kernel.scale_type),
      static_cast<const int32_t*>(call.data[kInputV]),
      static_cast<const int32_t*>(call.data[kInputU]),
      call.data[kInputScaleIn],
      attributes.has_scale_mid ? call.data[kInputScaleMid] : nullptr,
      call.data[kInputScaleOut],
      attributes.has_bias ? call.data[kInputBias] : nullptr,
  };
}
