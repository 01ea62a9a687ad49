// SPDX-License-Identifier: Apache-2.0
//
// The kernel of NanoQuantLinear: checks what the session hands over, then runs the three stages of
// the layer on the session's own thread pool.

#include "linear_op.h"

#include <stdlib.h>
#include <string.h>

#include "linear_inputs.h"
#include "linear_shape.h"
#include "status.h"
#include "workspace.h"

namespace {

struct LinearVariant {
  ort::CustomOp op;  // first: the callbacks get its address
  ort::ElementType x_type;
  ort::ElementType scale_type;
};

struct LinearKernel {
  const ort::Api* api;
  LinearAttributes attributes;
  ort::ElementType x_type;
  ort::ElementType scale_type;
  bool checked[kInputCount];  // constant inputs are checked once, when the session is made
};

const LinearVariant* variant_of(const ort::CustomOp* op) {
  return reinterpret_cast<const LinearVariant*>(op);
}

// One stage of a pass, cut into chunks.
struct Stage {
  nq_status (*run)(const nq_pass*, int64_t, int64_t);
  const nq_pass* pass;
  int64_t size;
  int64_t chunk;
  int failed;
};

void run_chunk(void* data, size_t index) {
  Stage* stage = static_cast<Stage*>(data);
  const int64_t begin = static_cast<int64_t>(index) * stage->chunk;
  const int64_t end = begin + stage->chunk < stage->size ? begin + stage->chunk : stage->size;
  const nq_status status = stage->run(stage->pass, begin, end);
  if (status != NQ_OK) __atomic_store_n(&stage->failed, static_cast<int>(status), __ATOMIC_RELAXED);
}

// Runs a stage over [0, size) in chunks of whole steps that are worth a thread's while.
// `work` is the number of sign-adds in one step.
ort::Status* run_stage(const ort::Api* api, const ort::KernelContext* context, Stage stage,
                       int64_t step, int64_t work) {
  constexpr int64_t kWorthwhile = 1 << 17;  // about 5 microseconds of one core
  constexpr int64_t kMostChunks = 64;
  const int64_t steps = (stage.size + step - 1) / step;
  int64_t per_chunk = work < kWorthwhile ? (kWorthwhile + work - 1) / work : 1;
  if (per_chunk < (steps + kMostChunks - 1) / kMostChunks) {
    per_chunk = (steps + kMostChunks - 1) / kMostChunks;
  }
  const int64_t chunks = (steps + per_chunk - 1) / per_chunk;
  stage.chunk = per_chunk * step;
  if (chunks == 1) {
    run_chunk(&stage, 0);
  } else {
    NQ_ORT_RETURN(ort::call<ort::ContextParallelFor>(api, ort::kKernelContextParallelFor)(
        context, run_chunk, static_cast<size_t>(chunks), 0, &stage));
  }
  if (stage.failed != NQ_OK) {
    return ort::fail(api, ort::kFail, "%s", nq_status_text(static_cast<nq_status>(stage.failed)));
  }
  return nullptr;
}

ort::Status* run_pass(const ort::Api* api, const ort::KernelContext* context, const nq_pass& pass) {
  const nq_linear& layer = *pass.layer;
  const int64_t strip = pass.rows * NQ_RANGE_STEP;
  NQ_ORT_RETURN(run_stage(api, context, Stage{nq_stage_scale, &pass, pass.rows, 0, NQ_OK}, 1,
                          layer.in_features));
  NQ_ORT_RETURN(run_stage(api, context, Stage{nq_stage_rank, &pass, layer.rank, 0, NQ_OK},
                          NQ_RANGE_STEP, strip * layer.in_features));
  return run_stage(api, context, Stage{nq_stage_out, &pass, layer.out_features, 0, NQ_OK},
                   NQ_RANGE_STEP, strip * layer.rank);
}

ort::Status* data_of(const ort::Api* api, const ort::Value* value, void** data) {
  return ort::call<ort::GetMutableData>(api, ort::kGetTensorMutableData)(
      const_cast<ort::Value*>(value), data);
}

ort::Status* compute(void* state, ort::KernelContext* context) {
  const LinearKernel& kernel = *static_cast<const LinearKernel*>(state);
  const ort::Api* api = kernel.api;
  const LinearAttributes& attributes = kernel.attributes;

  size_t inputs = 0;
  NQ_ORT_RETURN(ort::call<ort::ContextGetInputCount>(api, ort::kKernelContextGetInputCount)(
      context, &inputs));
  if (inputs != kInputCount) {
    return ort::fail(api, ort::kInvalidGraph, "the node has %zu inputs, expected 7", inputs);
  }
  TensorShape x_shape;
  int64_t rows = 0;
  void* data[kInputCount];
  for (size_t i = 0; i < kInputCount; ++i) {
    const ort::Value* value = nullptr;
    NQ_ORT_RETURN(
        ort::call<ort::ContextGetInput>(api, ort::kKernelContextGetInput)(context, i, &value));
    if (i == kInputX) {
      NQ_ORT_RETURN(read_shape(api, value, &x_shape));
      NQ_ORT_RETURN(check_x(api, attributes, kernel.x_type, x_shape, &rows));
    } else if (!kernel.checked[i]) {
      TensorShape shape;
      NQ_ORT_RETURN(read_shape(api, value, &shape));
      NQ_ORT_RETURN(check_weight(api, attributes, kernel.scale_type, i, shape));
    }
    NQ_ORT_RETURN(data_of(api, value, &data[i]));
  }

  x_shape.dims[x_shape.count - 1] = attributes.out_features;
  ort::Value* output = nullptr;
  NQ_ORT_RETURN(ort::call<ort::ContextGetOutput>(api, ort::kKernelContextGetOutput)(
      context, 0, x_shape.dims, x_shape.count, &output));
  if (rows == 0) return nullptr;
  void* y = nullptr;
  NQ_ORT_RETURN(data_of(api, output, &y));

  const nq_linear layer = {
      attributes.in_features,
      attributes.rank,
      attributes.out_features,
      NQ_LAYOUT_ROWS_LSB_FIRST,
      kernel_type(kernel.scale_type),
      static_cast<const int32_t*>(data[kInputV]),
      static_cast<const int32_t*>(data[kInputU]),
      data[kInputScaleIn],
      attributes.has_scale_mid ? data[kInputScaleMid] : nullptr,
      data[kInputScaleOut],
      attributes.has_bias ? data[kInputBias] : nullptr,
  };
  // Passes of nearly equal height, so that the last one is not a sliver.
  const int64_t passes = (rows - 1) / NQ_PASS_ROWS + 1;
  const int64_t tallest = (rows - 1) / passes + 1;
  const size_t bytes = nq_workspace_bytes(&layer, tallest);
  if (bytes == 0)
    return ort::fail(api, ort::kInvalidArgument, "%s", nq_status_text(nq_linear_check(&layer)));
  const Workspace workspace(bytes);
  if (workspace.data() == nullptr) {
    return ort::fail(api, ort::kFail, "%zu bytes of scratch memory are not to be had", bytes);
  }
  const int64_t element = kernel.x_type == ort::kFloat ? 4 : 2;
  for (int64_t row = 0; row < rows; row += tallest) {
    const nq_pass pass = {
        &layer,
        kernel_type(kernel.x_type),
        rows - row < tallest ? rows - row : tallest,
        static_cast<const char*>(data[kInputX]) + row * attributes.in_features * element,
        static_cast<char*>(y) + row * attributes.out_features * element,
        workspace.data(),
    };
    NQ_ORT_RETURN(run_pass(api, context, pass));
  }
  return nullptr;
}

ort::Status* prepare(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                     LinearKernel* kernel) {
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

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** state) {
  *state = nullptr;
  LinearKernel* kernel = static_cast<LinearKernel*>(calloc(1, sizeof(LinearKernel)));
  if (kernel == nullptr) return ort::fail(api, ort::kFail, "out of memory");
  ort::Status* status = prepare(op, api, info, kernel);
  if (status != nullptr) {
    free(kernel);
    return status;
  }
  *state = kernel;
  return nullptr;
}

void destroy(void* state) { free(state); }

const char* name(const ort::CustomOp*) { return "NanoQuantLinear"; }
const char* provider(const ort::CustomOp*) { return "CPUExecutionProvider"; }
size_t input_count(const ort::CustomOp*) { return kInputCount; }
size_t output_count(const ort::CustomOp*) { return 1; }
ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  if (index == kInputX) return variant_of(op)->x_type;
  return index == kInputV || index == kInputU ? ort::kInt32 : variant_of(op)->scale_type;
}
ort::ElementType output_type(const ort::CustomOp* op, size_t) { return variant_of(op)->x_type; }
ort::Characteristic required(const ort::CustomOp*, size_t) { return ort::kRequired; }
ort::MemoryType default_memory(const ort::CustomOp*, size_t) { return ort::kMemoryDefault; }
int first_version(const ort::CustomOp*) { return 1; }

constexpr ort::CustomOp make_op() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = name;
  op.GetExecutionProviderType = provider;
  op.GetInputType = input_type;
  op.GetInputTypeCount = input_count;
  op.GetOutputType = output_type;
  op.GetOutputTypeCount = output_count;
  op.KernelDestroy = destroy;
  op.GetInputCharacteristic = required;
  op.GetOutputCharacteristic = required;
  op.GetInputMemoryType = default_memory;
  op.InferOutputShape = infer_linear_shape;
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = first_version;
  op.GetEndVersion = first_version;
  return op;
}

constexpr LinearVariant make_variant(ort::ElementType x, ort::ElementType scale) {
  return LinearVariant{make_op(), x, scale};
}

const LinearVariant kVariants[kLinearVariants] = {
    make_variant(ort::kFloat, ort::kFloat),       make_variant(ort::kFloat, ort::kFloat16),
    make_variant(ort::kFloat, ort::kBfloat16),    make_variant(ort::kFloat16, ort::kFloat),
    make_variant(ort::kFloat16, ort::kFloat16),   make_variant(ort::kFloat16, ort::kBfloat16),
    make_variant(ort::kBfloat16, ort::kFloat),    make_variant(ort::kBfloat16, ort::kFloat16),
    make_variant(ort::kBfloat16, ort::kBfloat16),
};

}  // namespace

const ort::CustomOp* linear_variant(int index) { return &kVariants[index].op; }
