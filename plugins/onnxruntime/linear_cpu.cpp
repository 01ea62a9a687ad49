// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear on the CPU: the three stages of the layer on the session's own thread pool.

#include "linear_cpu.h"

#include <stdlib.h>

#include "linear_kernel.h"
#include "status.h"
#include "workspace.h"

namespace {

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

}  // namespace

ort::Status* cpu_compute(void* state, ort::KernelContext* context) {
  const LinearKernel& kernel = *static_cast<const LinearKernel*>(state);
  const ort::Api* api = kernel.api;
  LinearCall call;
  NQ_ORT_RETURN(read_call(kernel, context, &call));
  if (call.rows == 0) return nullptr;
  const nq_linear layer = describe_layer(kernel, call);
  const int64_t rows = call.rows;
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
        static_cast<const char*>(call.data[kInputX]) + row * layer.in_features * element,
        static_cast<char*>(call.y) + row * layer.out_features * element,
        workspace.data(),
    };
    NQ_ORT_RETURN(run_pass(api, context, pass));
  }
  return nullptr;
}

ort::Status* cpu_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                        void** state) {
  *state = nullptr;
  LinearKernel* kernel = static_cast<LinearKernel*>(calloc(1, sizeof(LinearKernel)));
  if (kernel == nullptr) return ort::fail(api, ort::kFail, "out of memory");
  ort::Status* status = prepare_kernel(op, api, info, kernel);
  if (status == nullptr && kernel->attributes.layout != NQ_LAYOUT_ROWS_LSB_FIRST) {
    status = ort::fail(api, ort::kInvalidGraph,
                       "layout 1 is for GPUs, and the CPU kernel reads layout 0 only: export the "
                       "model for the CPU, or run it on the CUDA provider");
  }
  if (status != nullptr) {
    free(kernel);
    return status;
  }
  *state = kernel;
  return nullptr;
}

void cpu_destroy(void* state) { free(state); }
