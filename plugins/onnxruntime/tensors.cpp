// SPDX-License-Identifier: Apache-2.0

#include "tensors.h"

#include <inttypes.h>

#include "status.h"

ort::Status* read_integer(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                          int64_t low, int64_t high, int64_t* value) {
  ort::Status* status =
      ort::call<ort::InfoGetInt64>(api, ort::kKernelInfoGetAttributeInt64)(info, name, value);
  if (status != nullptr) {
    ort::call<ort::ReleaseStatus>(api, ort::kReleaseStatus)(status);
    return ort::fail(api, ort::kInvalidGraph, "integer attribute '%s' is missing", name);
  }
  if (*value < low || *value > high) {
    return ort::fail(api, ort::kInvalidGraph,
                     "attribute '%s' is %" PRId64 ", outside %" PRId64 " to %" PRId64, name, *value,
                     low, high);
  }
  return nullptr;
}

ort::Status* read_shape(const ort::Api* api, const ort::Value* value, TensorShape* shape) {
  if (value == nullptr) return ort::fail(api, ort::kInvalidGraph, "an input is missing");
  ort::TypeShape* info = nullptr;
  NQ_ORT_RETURN(
      ort::call<ort::GetTensorTypeAndShape>(api, ort::kGetTensorTypeAndShape)(value, &info));
  ort::Status* status =
      ort::call<ort::GetElementType>(api, ort::kGetElementType)(info, &shape->type);
  if (status == nullptr) {
    status = ort::call<ort::GetDimensionsCount>(api, ort::kGetDimensionsCount)(info, &shape->count);
  }
  if (status == nullptr && shape->count > kMaxDimensions) {
    status = ort::fail(api, ort::kInvalidArgument, "a tensor has %zu dimensions, more than %zu",
                       shape->count, kMaxDimensions);
  }
  if (status == nullptr) {
    status =
        ort::call<ort::GetDimensions>(api, ort::kGetDimensions)(info, shape->dims, shape->count);
  }
  ort::call<ort::ReleaseTypeShape>(api, ort::kReleaseTypeShape)(info);
  return status;
}

ort::Status* read_data(const ort::Api* api, const ort::Value* value, void** data) {
  return ort::call<ort::GetMutableData>(api, ort::kGetTensorMutableData)(
      const_cast<ort::Value*>(value), data);
}

ort::Status* read_input(const ort::Api* api, const ort::KernelContext* context, size_t index,
                        TensorShape* shape, void** data) {
  const ort::Value* value = nullptr;
  NQ_ORT_RETURN(
      ort::call<ort::ContextGetInput>(api, ort::kKernelContextGetInput)(context, index, &value));
  NQ_ORT_RETURN(read_shape(api, value, shape));
  return read_data(api, value, data);
}

ort::Status* read_constant(const ort::Api* api, const ort::KernelInfo* info, size_t index,
                           TensorShape* shape, void** data) {
  int constant = 0;
  const ort::Value* value = nullptr;
  NQ_ORT_RETURN(ort::call<ort::InfoGetConstantInput>(api, ort::kKernelInfoGetConstantInput)(
      info, index, &constant, &value));
  if (constant == 0 || value == nullptr) {
    return ort::fail(api, ort::kInvalidGraph, "input %zu is not a constant", index);
  }
  NQ_ORT_RETURN(read_shape(api, value, shape));
  return read_data(api, value, data);
}

ort::Status* make_output(const ort::Api* api, ort::KernelContext* context, size_t index,
                         const TensorShape& shape, void** data) {
  ort::Value* output = nullptr;
  NQ_ORT_RETURN(ort::call<ort::ContextGetOutput>(api, ort::kKernelContextGetOutput)(
      context, index, shape.dims, shape.count, &output));
  return read_data(api, output, data);
}

nq_type kernel_type(ort::ElementType type) {
  switch (type) {
    case ort::kFloat16:
      return NQ_FLOAT16;
    case ort::kBfloat16:
      return NQ_BFLOAT16;
    default:
      return NQ_FLOAT32;
  }
}
