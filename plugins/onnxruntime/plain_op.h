// SPDX-License-Identifier: Apache-2.0
//
// How an operator of ours becomes ONNX Runtime's table of callbacks: version 1, inputs and outputs
// that are all required and lie in the provider's own memory, and a kernel that is one zeroed
// block.

#ifndef NQ_ORT_PLAIN_OP_H
#define NQ_ORT_PLAIN_OP_H

#include <stdlib.h>

#include "ort_abi.h"

// What an operator says of itself: its name, and how many inputs and outputs of which types it has.
struct OpSignature {
  const char* (*name)(const ort::CustomOp*);
  size_t (*inputs)(const ort::CustomOp*);
  ort::ElementType (*input_type)(const ort::CustomOp*, size_t);
  size_t (*outputs)(const ort::CustomOp*);
  ort::ElementType (*output_type)(const ort::CustomOp*, size_t);
};

// The life of a kernel, and the execution provider that it is for.
struct OpKernel {
  ort::Status* (*create)(const ort::CustomOp*, const ort::Api*, const ort::KernelInfo*, void**);
  ort::Status* (*compute)(void*, ort::KernelContext*);
  void (*destroy)(void*);
  const char* (*provider)(const ort::CustomOp*);
};

// Callbacks that several operators share.
template <size_t Count>
size_t always(const ort::CustomOp*) {
  return Count;
}
inline const char* cpu_provider(const ort::CustomOp*) { return "CPUExecutionProvider"; }
inline ort::Characteristic required(const ort::CustomOp*, size_t) { return ort::kRequired; }
inline ort::MemoryType default_memory(const ort::CustomOp*, size_t) { return ort::kMemoryDefault; }
inline int first_version(const ort::CustomOp*) { return 1; }

// The operator's table. Variadic inputs and shape inference are for the operator to add.
constexpr ort::CustomOp plain_op(const OpSignature& signature, const OpKernel& kernel) {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = signature.name;
  op.GetExecutionProviderType = kernel.provider;
  op.GetInputType = signature.input_type;
  op.GetInputTypeCount = signature.inputs;
  op.GetOutputType = signature.output_type;
  op.GetOutputTypeCount = signature.outputs;
  op.KernelDestroy = kernel.destroy;
  op.GetInputCharacteristic = required;
  op.GetOutputCharacteristic = required;
  op.GetInputMemoryType = default_memory;
  op.CreateKernelV2 = kernel.create;
  op.KernelComputeV2 = kernel.compute;
  op.GetStartVersion = first_version;
  op.GetEndVersion = first_version;
  return op;
}

// Makes a kernel's block, all zeros, and lets `prepare(kernel)` fill it; what could not be prepared
// is destroyed again. `State` needs no constructor.
template <class State, class Prepare>
ort::Status* make_state(const ort::Api* api, void** state, void (*destroy)(void*),
                        Prepare prepare) {
  *state = nullptr;
  State* made = static_cast<State*>(calloc(1, sizeof(State)));
  if (made == nullptr) {
    return ort::call<ort::CreateStatus>(api, ort::kCreateStatus)(
        ort::kFail, "nanoquant-edge: out of memory for a kernel");
  }
  if (ort::Status* failed = prepare(made)) {
    destroy(made);
    return failed;
  }
  *state = made;
  return nullptr;
}

#endif  // NQ_ORT_PLAIN_OP_H
