// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear's callbacks on the CPU.

#ifndef NQ_ORT_LINEAR_CPU_H
#define NQ_ORT_LINEAR_CPU_H

#include "ort_abi.h"

ort::Status* cpu_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                        void** state);
ort::Status* cpu_compute(void* state, ort::KernelContext* context);
void cpu_destroy(void* state);

#endif  // NQ_ORT_LINEAR_CPU_H
