// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear on the CPU. Packed words that are constant, as in every exported model, are
// arranged when the session is made; others at every call.

#include "linear_cpu.h"

#include <stdlib.h>

#include "arranged_words.h"
#include "linear_kernel.h"
#include "linear_passes.h"
#include "plain_op.h"
#include "status.h"
#include "workspace.h"

namespace {

struct CpuLinear {
  LinearKernel base;
  void* block;      // of arranged words; null when they are no constants
  nq_linear layer;  // whose words lie there
};

ort::Status* arrange_kernel(const ort::KernelInfo* info, CpuLinear* kernel) {
  const LinearKernel& base = kernel->base;
  if (!base.checked[kInputV] || !base.checked[kInputU]) return nullptr;
  void* data[kInputCount] = {};
  TensorShape shape;
  const size_t parts[] = {kInputV, kInputU};
  for (const size_t part : parts) {
    NQ_ORT_RETURN(read_constant(base.api, info, part, &shape, &data[part]));
  }
  kernel->layer = describe_layer(base.attributes, base.scale_type, data);
  return arrange_constants(base.api, base.attributes, &kernel->block, &kernel->layer);
}

ort::Status* run(const LinearKernel& base, ort::KernelContext* context, const nq_linear& layer,
                 LinearCall* call) {
  return run_layers(base.api, context, &layer, 1, kernel_type(base.x_type), call->rows,
                    call->data[kInputX], &call->y);
}

}  // namespace

ort::Status* cpu_compute(void* state, ort::KernelContext* context) {
  const CpuLinear& kernel = *static_cast<const CpuLinear*>(state);
  const LinearKernel& base = kernel.base;
  LinearCall call;
  NQ_ORT_RETURN(read_call(base, context, &call));
  if (call.rows == 0) return nullptr;
  nq_linear layer = describe_layer(base.attributes, base.scale_type, call.data);
  if (kernel.block != nullptr) {
    layer.layout = kernel.layer.layout;
    layer.v_words = kernel.layer.v_words;
    layer.u_words = kernel.layer.u_words;
    return run(base, context, layer, &call);
  }
  const Workspace words(arranged_bytes(base.attributes));
  if (words.data() == nullptr) {
    return ort::fail(base.api, ort::kFail, "there is no memory for a layer's words");
  }
  NQ_ORT_RETURN(arrange_layer(base.api, words.data(), &layer));
  return run(base, context, layer, &call);
}

ort::Status* cpu_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                        void** state) {
  return make_state<CpuLinear>(api, state, cpu_destroy, [=](CpuLinear* kernel) -> ort::Status* {
    NQ_ORT_RETURN(prepare_kernel(op, api, info, &kernel->base));
    if (kernel->base.attributes.layout == NQ_LAYOUT_ROWS_LSB_FIRST) {
      return arrange_kernel(info, kernel);
    }
    return ort::fail(api, ort::kInvalidGraph,
                     "layout 1 is for GPUs, and the CPU kernel reads layout 0 only: export the "
                     "model for the CPU, or run it on the CUDA provider");
  });
}

void cpu_destroy(void* state) {
  free(static_cast<CpuLinear*>(state)->block);
  free(state);
}
