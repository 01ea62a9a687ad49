// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear's callbacks on the CPU; the kernel's state is a plain block, which free()
// destroys.

#ifndef NQ_ORT_LINEAR_CPU_H
#define NQ_ORT_LINEAR_CPU_H

#include "ort_abi.h"

ort::Status* cpu_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                        void** state);
ort::Status* cpu_compute(void* state, ort::KernelContext* context);

#endif  // NQ_ORT_LINEAR_CPU_H
