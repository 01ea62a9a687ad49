// SPDX-License-Identifier: Apache-2.0

#include "linear_shape.h"

#include "linear_inputs.h"
#include "status.h"

namespace {

const ort::Api* shapes_api = nullptr;
bool shapes_off = false;

struct KnownShape {
  ort::ElementType type;
  size_t count;
  int64_t dims[kMaxDimensions];
  const char* names[kMaxDimensions];  // empty where the dimension has no name
};

// Reads one input's inferred shape; `count` is 0 when nothing is known. The handle belongs to the
// context, and so do the names.
ort::Status* read_known(const ort::Api* api, const ort::ShapeInferContext* context, size_t index,
                        KnownShape* shape) {
  shape->count = 0;
  ort::TypeShape* info = nullptr;
  NQ_ORT_RETURN(
      ort::call<ort::InferGetInput>(api, ort::kShapeInferGetInputTypeShape)(context, index, &info));
  if (info == nullptr) return nullptr;
  size_t count = 0;
  NQ_ORT_RETURN(ort::call<ort::GetElementType>(api, ort::kGetElementType)(info, &shape->type));
  NQ_ORT_RETURN(ort::call<ort::GetDimensionsCount>(api, ort::kGetDimensionsCount)(info, &count));
  if (count == 0 || count > kMaxDimensions) return nullptr;
  NQ_ORT_RETURN(ort::call<ort::GetDimensions>(api, ort::kGetDimensions)(info, shape->dims, count));
  NQ_ORT_RETURN(ort::call<ort::GetSymbolicDimensions>(api, ort::kGetSymbolicDimensions)(
      info, shape->names, count));
  shape->count = count;
  return nullptr;
}

ort::Status* fill(const ort::Api* api, ort::TypeShape* info, KnownShape* shape) {
  NQ_ORT_RETURN(ort::call<ort::SetElementType>(api, ort::kSetElementType)(info, shape->type));
  NQ_ORT_RETURN(
      ort::call<ort::SetDimensions>(api, ort::kSetDimensions)(info, shape->dims, shape->count));
  return ort::call<ort::SetSymbolicDimensions>(api, ort::kSetSymbolicDimensions)(info, shape->names,
                                                                                 shape->count);
}

}  // namespace

void use_api_for_shapes(const ort::Api* api) {
  const ort::Api* before = nullptr;
  if (!__atomic_compare_exchange_n(&shapes_api, &before, api, false, __ATOMIC_ACQ_REL,
                                   __ATOMIC_ACQUIRE) &&
      before != api) {
    __atomic_store_n(&shapes_off, true, __ATOMIC_RELEASE);
  }
}

ort::Status* infer_linear_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  const ort::Api* api = __atomic_load_n(&shapes_api, __ATOMIC_ACQUIRE);
  if (api == nullptr || __atomic_load_n(&shapes_off, __ATOMIC_ACQUIRE)) return nullptr;
  size_t inputs = 0;
  NQ_ORT_RETURN(
      ort::call<ort::InferGetInputCount>(api, ort::kShapeInferGetInputCount)(context, &inputs));
  if (inputs != kInputCount) return nullptr;
  KnownShape x;
  KnownShape scale_out;
  NQ_ORT_RETURN(read_known(api, context, kInputX, &x));
  NQ_ORT_RETURN(read_known(api, context, kInputScaleOut, &scale_out));
  if (x.count == 0 || scale_out.count != 1 || scale_out.dims[0] < 1) return nullptr;
  x.dims[x.count - 1] = scale_out.dims[0];
  x.names[x.count - 1] = "";
  for (size_t i = 0; i < x.count; ++i) {
    // A nameless unknown dimension cannot be expressed here.
    if (x.names[i] == nullptr) x.names[i] = "";
    if (x.dims[i] < 0 && x.names[i][0] == '\0') return nullptr;
  }
  ort::TypeShape* info = nullptr;
  NQ_ORT_RETURN(ort::call<ort::CreateTypeShape>(api, ort::kCreateTypeShape)(&info));
  ort::Status* status = fill(api, info, &x);
  if (status == nullptr) {
    status =
        ort::call<ort::InferSetOutput>(api, ort::kShapeInferSetOutputTypeShape)(context, 0, info);
  }
  ort::call<ort::ReleaseTypeShape>(api, ort::kReleaseTypeShape)(info);
  return status;
}
