// SPDX-License-Identifier: Apache-2.0
//
// com.nanoquant::NanoQuantLinear version 1 for CPUExecutionProvider.

#ifndef NQ_ORT_LINEAR_OP_H
#define NQ_ORT_LINEAR_OP_H

#include "ort_abi.h"

// One variant for each pair of an X type and a scale type; ONNX Runtime picks by the node's types.
constexpr int kLinearVariants = 9;

// The operator's description; lives as long as the library.
const ort::CustomOp* linear_variant(int index);

#endif  // NQ_ORT_LINEAR_OP_H
