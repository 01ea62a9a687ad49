// SPDX-License-Identifier: Apache-2.0

#include "fake_ort.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace fake {
namespace {

struct Status {
  ort::ErrorCode code;
  std::string text;
};
struct Shape {
  ort::ElementType type;
  std::vector<int64_t> dims;
};

int64_t alive = 0;
std::vector<const ort::CustomOp*> registered;

Node* node_of(const void* handle) { return static_cast<Node*>(const_cast<void*>(handle)); }
const Tensor* tensor_of(const void* value) { return static_cast<const Tensor*>(value); }

ort::Status* fail(ort::ErrorCode code, const char* text) {
  ++alive;
  return reinterpret_cast<ort::Status*>(new Status{code, text});
}

ort::Status* create_status(ort::ErrorCode code, const char* text) { return fail(code, text); }
void release_status(ort::Status* status) {
  if (status == nullptr) return;
  --alive;
  delete reinterpret_cast<Status*>(status);
}
ort::Status* create_domain(const char*, ort::CustomOpDomain** domain) {
  static int only;
  *domain = reinterpret_cast<ort::CustomOpDomain*>(&only);
  return nullptr;
}
ort::Status* domain_add(ort::CustomOpDomain*, const ort::CustomOp* op) {
  registered.push_back(op);
  return nullptr;
}
ort::Status* add_domain(ort::SessionOptions*, ort::CustomOpDomain*) { return nullptr; }
ort::Status* mutable_data(ort::Value* value, void** data) {
  *data = const_cast<uint8_t*>(tensor_of(value)->data.get());
  return nullptr;
}
ort::Status* create_shape(ort::TypeShape** shape) {
  ++alive;
  *shape = reinterpret_cast<ort::TypeShape*>(new Shape{});
  return nullptr;
}
Shape* shape_of(const ort::TypeShape* shape) {
  return reinterpret_cast<Shape*>(const_cast<ort::TypeShape*>(shape));
}
ort::Status* set_type(ort::TypeShape* shape, ort::ElementType type) {
  shape_of(shape)->type = type;
  return nullptr;
}
ort::Status* set_dims(ort::TypeShape* shape, const int64_t* dims, size_t count) {
  shape_of(shape)->dims.assign(dims, dims + count);
  return nullptr;
}
ort::Status* get_type(const ort::TypeShape* shape, ort::ElementType* type) {
  *type = shape_of(shape)->type;
  return nullptr;
}
ort::Status* get_count(const ort::TypeShape* shape, size_t* count) {
  *count = shape_of(shape)->dims.size();
  return nullptr;
}
ort::Status* get_dims(const ort::TypeShape* shape, int64_t* dims, size_t count) {
  for (size_t i = 0; i < count && i < shape_of(shape)->dims.size(); ++i) {
    dims[i] = shape_of(shape)->dims[i];
  }
  return nullptr;
}
ort::Status* get_names(const ort::TypeShape*, const char** names, size_t count) {
  for (size_t i = 0; i < count; ++i) names[i] = i % 2 == 0 ? "n" : "";
  return nullptr;
}
ort::Status* set_names(ort::TypeShape*, const char** names, size_t count) {
  size_t length = 0;
  for (size_t i = 0; i < count; ++i) length += strlen(names[i]);
  return length > 1000 ? fail(ort::kFail, "long names") : nullptr;
}
ort::Status* type_and_shape(const ort::Value* value, ort::TypeShape** shape) {
  create_shape(shape);
  shape_of(*shape)->type = tensor_of(value)->type;
  shape_of(*shape)->dims = tensor_of(value)->dims;
  return nullptr;
}
void release_shape(ort::TypeShape* shape) {
  --alive;
  delete shape_of(shape);
}

const Attribute* find(const ort::KernelInfo* info, const char* name, Attribute::Kind kind) {
  const auto& all = node_of(info)->attributes;
  const auto place = all.find(name);
  return place == all.end() || place->second.kind != kind ? nullptr : &place->second;
}
ort::Status* get_int(const ort::KernelInfo* info, const char* name, int64_t* value) {
  const Attribute* found = find(info, name, Attribute::kInt);
  if (found == nullptr) return fail(ort::kFail, "no such attribute");
  *value = found->ints[0];
  return nullptr;
}
ort::Status* get_float(const ort::KernelInfo* info, const char* name, float* value) {
  const Attribute* found = find(info, name, Attribute::kFloat);
  if (found == nullptr) return fail(ort::kFail, "no such attribute");
  *value = found->number;
  return nullptr;
}
ort::Status* get_ints(const ort::KernelInfo* info, const char* name, int64_t* values,
                      size_t* size) {
  const Attribute* found = find(info, name, Attribute::kInts);
  if (found == nullptr) return fail(ort::kFail, "no such attribute");
  if (values == nullptr) {
    *size = found->ints.size();
    return nullptr;
  }
  if (*size < found->ints.size()) return fail(ort::kInvalidArgument, "too small");
  *size = found->ints.size();
  for (size_t i = 0; i < *size; ++i) values[i] = found->ints[i];
  return nullptr;
}
ort::Status* info_inputs(const ort::KernelInfo* info, size_t* count) {
  *count = node_of(info)->inputs.size();
  return nullptr;
}
ort::Status* constant_input(const ort::KernelInfo* info, size_t index, int* constant,
                            const ort::Value** value) {
  const auto& inputs = node_of(info)->inputs;
  if (index >= inputs.size()) return fail(ort::kInvalidArgument, "no such input");
  const bool known = inputs[index].constant && !inputs[index].missing;
  *constant = known ? 1 : 0;
  *value = known ? reinterpret_cast<const ort::Value*>(&inputs[index]) : nullptr;
  return nullptr;
}
ort::Status* context_inputs(const ort::KernelContext* context, size_t* count) {
  *count = node_of(context)->inputs.size();
  return nullptr;
}
ort::Status* context_input(const ort::KernelContext* context, size_t index,
                           const ort::Value** value) {
  const auto& inputs = node_of(context)->inputs;
  *value = nullptr;
  if (index >= inputs.size()) return fail(ort::kInvalidArgument, "no such input");
  if (!inputs[index].missing) *value = reinterpret_cast<const ort::Value*>(&inputs[index]);
  return nullptr;
}
ort::Status* context_output(ort::KernelContext* context, size_t index, const int64_t* dims,
                            size_t count, ort::Value** value) {
  auto& outputs = node_of(context)->outputs;
  if (index >= outputs.size()) return fail(ort::kInvalidArgument, "no such output");
  outputs[index].dims.assign(dims, dims + count);
  for (const int64_t dim : outputs[index].dims) {
    if (dim < 0) return fail(ort::kInvalidArgument, "a negative dimension");
  }
  if (!outputs[index].allocate()) return fail(ort::kFail, "out of memory");
  *value = reinterpret_cast<ort::Value*>(&outputs[index]);
  return nullptr;
}
// Backwards, which a kernel must not notice.
ort::Status* parallel_for(const ort::KernelContext*, void (*run)(void*, size_t), size_t total,
                          size_t, void* data) {
  for (size_t i = total; i-- > 0;) run(data, i);
  return nullptr;
}
ort::Status* infer_inputs(const ort::ShapeInferContext* context, size_t* count) {
  *count = node_of(context)->inputs.size();
  return nullptr;
}
std::vector<std::unique_ptr<Shape>> lent;
ort::Status* infer_input(const ort::ShapeInferContext* context, size_t index,
                         ort::TypeShape** shape) {
  const auto& inputs = node_of(context)->inputs;
  if (index >= inputs.size()) return fail(ort::kInvalidArgument, "no such input");
  lent.push_back(std::make_unique<Shape>(Shape{inputs[index].type, inputs[index].dims}));
  *shape = reinterpret_cast<ort::TypeShape*>(lent.back().get());
  return nullptr;
}
ort::Status* infer_output(const ort::ShapeInferContext*, size_t, const ort::TypeShape* shape) {
  return shape_of(shape)->dims.empty() ? fail(ort::kFail, "no dimensions") : nullptr;
}
void unexpected() {
  fprintf(stderr, "the operator calls a function that the stand-in does not have\n");
  abort();
}

const void* slots[512];

const ort::Api* get_api(uint32_t) { return api(); }
const char* version() { return "stand-in"; }

}  // namespace

int64_t bytes_of(ort::ElementType type) {
  switch (type) {
    case ort::kInt8:
      return 1;
    case ort::kFloat16:
    case ort::kBfloat16:
      return 2;
    case ort::kInt64:
      return 8;
    default:
      return 4;
  }
}

int64_t Tensor::bytes() const {
  int64_t total = bytes_of(type);
  for (const int64_t dim : dims) {
    if (dim == 0) return 0;
  }
  for (const int64_t dim : dims) {
    if (__builtin_mul_overflow(total, dim, &total) || total > kMostBytes) return -1;
  }
  return total;
}

bool Tensor::allocate() {
  const int64_t size = bytes();
  if (size < 0) return false;
  data.reset(new uint8_t[static_cast<size_t>(size)]());
  return true;
}

const ort::Api* api() {
  if (slots[0] != nullptr) return reinterpret_cast<const ort::Api*>(slots);
  for (auto& slot : slots) slot = reinterpret_cast<const void*>(unexpected);
#define NQ_SLOT(slot, function) slots[ort::slot] = reinterpret_cast<const void*>(function)
  NQ_SLOT(kCreateStatus, create_status);
  NQ_SLOT(kCreateCustomOpDomain, create_domain);
  NQ_SLOT(kCustomOpDomainAdd, domain_add);
  NQ_SLOT(kAddCustomOpDomain, add_domain);
  NQ_SLOT(kGetTensorMutableData, mutable_data);
  NQ_SLOT(kCreateTypeShape, create_shape);
  NQ_SLOT(kSetElementType, set_type);
  NQ_SLOT(kSetDimensions, set_dims);
  NQ_SLOT(kGetElementType, get_type);
  NQ_SLOT(kGetDimensionsCount, get_count);
  NQ_SLOT(kGetDimensions, get_dims);
  NQ_SLOT(kGetSymbolicDimensions, get_names);
  NQ_SLOT(kSetSymbolicDimensions, set_names);
  NQ_SLOT(kGetTensorTypeAndShape, type_and_shape);
  NQ_SLOT(kKernelInfoGetAttributeFloat, get_float);
  NQ_SLOT(kKernelInfoGetAttributeInt64, get_int);
  NQ_SLOT(kKernelInfoGetAttributeInt64s, get_ints);
  NQ_SLOT(kKernelContextGetInputCount, context_inputs);
  NQ_SLOT(kKernelContextGetInput, context_input);
  NQ_SLOT(kKernelContextGetOutput, context_output);
  NQ_SLOT(kReleaseStatus, release_status);
  NQ_SLOT(kReleaseTypeShape, release_shape);
  NQ_SLOT(kKernelInfoGetInputCount, info_inputs);
  NQ_SLOT(kKernelInfoGetConstantInput, constant_input);
  NQ_SLOT(kShapeInferGetInputCount, infer_inputs);
  NQ_SLOT(kShapeInferGetInputTypeShape, infer_input);
  NQ_SLOT(kShapeInferSetOutputTypeShape, infer_output);
  NQ_SLOT(kKernelContextParallelFor, parallel_for);
#undef NQ_SLOT
  return reinterpret_cast<const ort::Api*>(slots);
}

std::vector<const ort::CustomOp*> load(const char* library) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  using Register = ort::Status*(ort::SessionOptions*, const ort::ApiBase*);
  auto* entry =
      handle == nullptr ? nullptr : reinterpret_cast<Register*>(dlsym(handle, "RegisterCustomOps"));
  static const ort::ApiBase base = {get_api, version};
  if (entry == nullptr || entry(nullptr, &base) != nullptr) {
    fprintf(stderr, "%s cannot be loaded: %s\n", library, entry == nullptr ? dlerror() : "refused");
    exit(2);
  }
  return registered;
}

int64_t outstanding() { return alive; }
ort::KernelInfo* info_of(Node* node) { return reinterpret_cast<ort::KernelInfo*>(node); }
ort::KernelContext* context_of(Node* node) { return reinterpret_cast<ort::KernelContext*>(node); }
ort::ShapeInferContext* shapes_of(Node* node) {
  lent.clear();
  return reinterpret_cast<ort::ShapeInferContext*>(node);
}
void release(ort::Status* status) { release_status(status); }
const char* message_of(const ort::Status* status) {
  return reinterpret_cast<const Status*>(status)->text.c_str();
}

}  // namespace fake
