// SPDX-License-Identifier: Apache-2.0
//
// com.nanoquant::NanoQuantLinearGroup on the CPU: two to four layers of one X as one node.

#ifndef NQ_ORT_GROUP_CPU_H
#define NQ_ORT_GROUP_CPU_H

#include "ort_abi.h"

int group_variant_count();

// The variant of that index, one for each type of X; lives as long as the library.
const ort::CustomOp* group_variant(int index);

#endif  // NQ_ORT_GROUP_CPU_H
