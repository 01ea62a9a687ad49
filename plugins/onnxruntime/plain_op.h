// SPDX-License-Identifier: Apache-2.0
//
// What every operator of ours says alike: version 1, inputs and outputs that are all required, in
// the provider's own memory.

#ifndef NQ_ONNXRUNTIME_PLAIN_OP_H
#define NQ_ONNXRUNTIME_PLAIN_OP_H

#include "ort_abi.h"

inline ort::Characteristic required(const ort::CustomOp*, size_t) { return ort::kRequired; }
inline ort::MemoryType default_memory(const ort::CustomOp*, size_t) { return ort::kMemoryDefault; }
inline int first_version(const ort::CustomOp*) { return 1; }

// The rest of the callbacks is the operator's to fill in.
constexpr ort::CustomOp plain_op() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetInputCharacteristic = required;
  op.GetOutputCharacteristic = required;
  op.GetInputMemoryType = default_memory;
  op.GetStartVersion = first_version;
  op.GetEndVersion = first_version;
  return op;
}

#endif  // NQ_ONNXRUNTIME_PLAIN_OP_H
