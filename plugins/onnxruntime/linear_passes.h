// SPDX-License-Identifier: Apache-2.0
//
// The layers of one node on the session's own threads.

#ifndef NQ_ORT_LINEAR_PASSES_H
#define NQ_ORT_LINEAR_PASSES_H

#include "../kernels/nq_kernels.h"
#include "ort_abi.h"

// Most layers of one NanoQuantLinearGroup.
constexpr size_t kMaxLayers = 4;

// y[i] = layers[i](x) for `count` layers of one width: x is [rows][in_features], y[i]
// [rows][out_features], all dense and of type `type`. At least one row.
ort::Status* run_layers(const ort::Api* api, const ort::KernelContext* context,
                        const nq_linear* layers, size_t count, nq_type type, int64_t rows,
                        const void* x, void* const* y);

#endif  // NQ_ORT_LINEAR_PASSES_H
