// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear on the CPU.

#include "linear_cpu.h"

#include <stdlib.h>

#include "linear_kernel.h"
#include "linear_passes.h"
#include "plain_op.h"
#include "status.h"

ort::Status* cpu_compute(void* state, ort::KernelContext* context) {
  const LinearKernel& kernel = *static_cast<const LinearKernel*>(state);
  LinearCall call;
  NQ_ORT_RETURN(read_call(kernel, context, &call));
  if (call.rows == 0) return nullptr;
  const nq_linear layer = describe_layer(kernel.attributes, kernel.scale_type, call.data);
  return run_layers(kernel.api, context, &layer, 1, kernel_type(kernel.x_type), call.rows,
                    call.data[kInputX], &call.y);
}

ort::Status* cpu_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                        void** state) {
  return make_state<LinearKernel>(api, state, free, [=](LinearKernel* kernel) -> ort::Status* {
    NQ_ORT_RETURN(prepare_kernel(op, api, info, kernel));
    if (kernel->attributes.layout == NQ_LAYOUT_ROWS_LSB_FIRST) return nullptr;
    return ort::fail(api, ort::kInvalidGraph,
                     "layout 1 is for GPUs, and the CPU kernel reads layout 0 only: export the "
                     "model for the CPU, or run it on the CUDA provider");
  });
}
