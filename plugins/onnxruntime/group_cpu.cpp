// SPDX-License-Identifier: Apache-2.0
//
// The weights of a group have to be constant initializers: they are checked once, when the session
// is made, and a call then reads nothing but X.

#include "group_cpu.h"

#include <inttypes.h>
#include <stdlib.h>

#include "arranged_words.h"
#include "linear_inputs.h"
#include "linear_passes.h"
#include "plain_op.h"
#include "status.h"

namespace {

constexpr size_t kWeights = kInputCount - 1;  // inputs of one layer

struct GroupVariant {
  ort::CustomOp op;  // first: the callbacks get its address
  ort::ElementType x_type;
};

struct GroupKernel {
  const ort::Api* api;
  ort::ElementType x_type;
  size_t count;
  LinearAttributes attributes[kMaxLayers];
  nq_linear layers[kMaxLayers];
  void* blocks[kMaxLayers];  // of their arranged words
};

void destroy(void* state) {
  for (void* block : static_cast<GroupKernel*>(state)->blocks) free(block);
  free(state);
}

// Reads a list attribute of `*count` integers; a count of 0 takes any length up to kMaxLayers.
ort::Status* read_list(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                       size_t* count, int64_t* values) {
  const auto get = ort::call<ort::InfoGetInt64s>(api, ort::kKernelInfoGetAttributeInt64s);
  size_t size = 0;
  ort::Status* status = get(info, name, nullptr, &size);
  if (status == nullptr && size >= 2 && size <= kMaxLayers) {
    status = get(info, name, values, &size);
  }
  if (status != nullptr) {
    ort::call<ort::ReleaseStatus>(api, ort::kReleaseStatus)(status);
    return ort::fail(api, ort::kInvalidGraph, "the list of integers '%s' is missing", name);
  }
  if (size < 2 || size > kMaxLayers || (*count != 0 && size != *count)) {
    return ort::fail(api, ort::kInvalidGraph,
                     "attribute '%s' has %zu entries; a group has 2 to %zu layers, and every list "
                     "as many entries",
                     name, size, kMaxLayers);
  }
  *count = size;
  return nullptr;
}

ort::Status* read_group(const ort::Api* api, const ort::KernelInfo* info, GroupKernel* kernel) {
  int64_t n = 0;
  int64_t layout = 0;
  NQ_ORT_RETURN(read_integer(api, info, "in_features", 1, NQ_MAX_DIM, &n));
  NQ_ORT_RETURN(read_integer(api, info, "layout", 0, NQ_LAYOUT_TILES_16X256, &layout));
  if (layout != NQ_LAYOUT_ROWS_LSB_FIRST) {
    return ort::fail(api, ort::kInvalidGraph,
                     "layout 1 is for GPUs, and the CPU kernel reads layout 0 only: export the "
                     "model for the CPU");
  }
  int64_t lists[4][kMaxLayers];
  const char* const names[] = {"ranks", "out_features", "has_scale_mid", "has_bias"};
  const int64_t low[] = {1, 1, 0, 0};
  const int64_t high[] = {NQ_MAX_DIM, NQ_MAX_DIM, 1, 1};
  for (int list = 0; list < 4; ++list) {
    NQ_ORT_RETURN(read_list(api, info, names[list], &kernel->count, lists[list]));
    for (size_t i = 0; i < kernel->count; ++i) {
      if (lists[list][i] < low[list] || lists[list][i] > high[list]) {
        return ort::fail(api, ort::kInvalidGraph, "attribute '%s' holds %" PRId64, names[list],
                         lists[list][i]);
      }
    }
  }
  for (size_t i = 0; i < kernel->count; ++i) {
    kernel->attributes[i] = {n, lists[0][i], lists[1][i], lists[2][i], lists[3][i], layout};
  }
  return nullptr;
}

ort::Status* prepare(const ort::Api* api, const ort::KernelInfo* info, GroupKernel* kernel) {
  NQ_ORT_RETURN(read_group(api, info, kernel));
  size_t inputs = 0;
  NQ_ORT_RETURN(
      ort::call<ort::InfoGetInputCount>(api, ort::kKernelInfoGetInputCount)(info, &inputs));
  if (inputs != 1 + kWeights * kernel->count) {
    return ort::fail(api, ort::kInvalidGraph, "the group has %zu inputs, expected %zu", inputs,
                     1 + kWeights * kernel->count);
  }
  ort::ElementType scales = ort::kUndefined;
  for (size_t i = 0; i < kernel->count; ++i) {
    const LinearAttributes& attributes = kernel->attributes[i];
    void* data[kInputCount] = {};
    for (size_t part = kInputV; part < kInputCount; ++part) {
      TensorShape shape;
      NQ_ORT_RETURN(read_constant(api, info, i * kWeights + part, &shape, &data[part]));
      if (part == kInputScaleIn && i == 0) scales = shape.type;
      if (part == kInputScaleIn && scales != ort::kFloat && scales != ort::kFloat16 &&
          scales != ort::kBfloat16) {
        return ort::fail(api, ort::kInvalidGraph, "scale_in is of no floating type");
      }
      NQ_ORT_RETURN(check_weight(api, attributes, scales, part, shape));
    }
    kernel->layers[i] = describe_layer(attributes, scales, data);
    NQ_ORT_RETURN(arrange_constants(api, attributes, &kernel->blocks[i], &kernel->layers[i]));
  }
  return nullptr;
}

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** state) {
  return make_state<GroupKernel>(api, state, destroy, [=](GroupKernel* kernel) {
    kernel->api = api;
    kernel->x_type = reinterpret_cast<const GroupVariant*>(op)->x_type;
    return prepare(api, info, kernel);
  });
}

ort::Status* compute(void* state, ort::KernelContext* context) {
  const GroupKernel& kernel = *static_cast<const GroupKernel*>(state);
  const ort::Api* api = kernel.api;
  TensorShape shape;
  void* x = nullptr;
  NQ_ORT_RETURN(read_input(api, context, kInputX, &shape, &x));
  int64_t rows = 0;
  void* y[kMaxLayers] = {};
  for (size_t i = 0; i < kernel.count; ++i) {
    if (i > 0) shape.dims[shape.count - 1] = kernel.layers[i].in_features;
    NQ_ORT_RETURN(check_x(api, kernel.attributes[i], kernel.x_type, shape, &rows));
    shape.dims[shape.count - 1] = kernel.layers[i].out_features;
    NQ_ORT_RETURN(make_output(api, context, i, shape, &y[i]));
  }
  if (rows == 0) return nullptr;
  return run_layers(api, context, kernel.layers, kernel.count, kernel_type(kernel.x_type), rows, x,
                    y);
}

const char* name(const ort::CustomOp*) { return "NanoQuantLinearGroup"; }
ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  return index == kInputX ? reinterpret_cast<const GroupVariant*>(op)->x_type : ort::kUndefined;
}
ort::ElementType output_type(const ort::CustomOp* op, size_t) {
  return reinterpret_cast<const GroupVariant*>(op)->x_type;
}
ort::Characteristic input_kind(const ort::CustomOp*, size_t index) {
  return index == kInputX ? ort::kRequired : ort::kVariadic;
}
ort::Characteristic output_kind(const ort::CustomOp*, size_t) { return ort::kVariadic; }
int fewest_inputs(const ort::CustomOp*) { return static_cast<int>(2 * kWeights); }
int fewest_outputs(const ort::CustomOp*) { return 2; }
int of_any_type(const ort::CustomOp*) { return 0; }
int of_one_type(const ort::CustomOp*) { return 1; }

constexpr GroupVariant make_variant(ort::ElementType x_type) {
  // X and one variadic input of any type; one variadic output of X's.
  ort::CustomOp op = plain_op({name, always<2>, input_type, always<1>, output_type},
                              {create, compute, destroy, cpu_provider});
  op.GetInputCharacteristic = input_kind;
  op.GetOutputCharacteristic = output_kind;
  op.GetVariadicInputMinArity = fewest_inputs;
  op.GetVariadicInputHomogeneity = of_any_type;
  op.GetVariadicOutputMinArity = fewest_outputs;
  op.GetVariadicOutputHomogeneity = of_one_type;
  return GroupVariant{op, x_type};
}

const GroupVariant kVariants[] = {make_variant(ort::kFloat), make_variant(ort::kFloat16),
                                  make_variant(ort::kBfloat16)};

}  // namespace

int group_variant_count() { return static_cast<int>(sizeof kVariants / sizeof kVariants[0]); }

const ort::CustomOp* group_variant(int index) { return &kVariants[index].op; }
