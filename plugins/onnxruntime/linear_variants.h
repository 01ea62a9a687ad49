// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear as ONNX Runtime sees it: one custom operator for each execution provider and each
// pair of X and scale type.

#ifndef NQ_ORT_LINEAR_VARIANTS_H
#define NQ_ORT_LINEAR_VARIANTS_H

#include "ort_abi.h"

int linear_variant_count();

// The variant of that index; lives as long as the library.
const ort::CustomOp* linear_variant(int index);

#endif  // NQ_ORT_LINEAR_VARIANTS_H
