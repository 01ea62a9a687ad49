// SPDX-License-Identifier: Apache-2.0
//
// com.nanoquant::NanoQuantAttention on the CPU, in float32.

#ifndef NQ_ORT_ATTENTION_CPU_H
#define NQ_ORT_ATTENTION_CPU_H

#include "ort_abi.h"

// The operator; lives as long as the library.
const ort::CustomOp* attention_op();

#endif  // NQ_ORT_ATTENTION_CPU_H
