// SPDX-License-Identifier: Apache-2.0
//
// com.nanoquant::NanoQuantAttention on the CPU, in float32, and NanoQuantAttentionHalfCache, which
// keeps keys and values in float16.

#ifndef NQ_ORT_ATTENTION_CPU_H
#define NQ_ORT_ATTENTION_CPU_H

#include "ort_abi.h"

int attention_op_count();

// An operator, which lives as long as the library.
const ort::CustomOp* attention_op(int index);

#endif  // NQ_ORT_ATTENTION_CPU_H
