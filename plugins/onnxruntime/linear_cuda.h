// SPDX-License-Identifier: Apache-2.0
//
// NanoQuantLinear's callbacks on a GPU.

#ifndef NQ_ORT_LINEAR_CUDA_H
#define NQ_ORT_LINEAR_CUDA_H

#include "ort_abi.h"

ort::Status* cuda_create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                         void** state);
ort::Status* cuda_compute(void* state, ort::KernelContext* context);
void cuda_destroy(void* state);

#endif  // NQ_ORT_LINEAR_CUDA_H
