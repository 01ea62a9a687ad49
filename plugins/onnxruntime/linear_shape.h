// SPDX-License-Identifier: Apache-2.0
//
// Shape inference for NanoQuantLinear when a session is made.

#ifndef NQ_ORT_LINEAR_SHAPE_H
#define NQ_ORT_LINEAR_SHAPE_H

#include "ort_abi.h"

// Y has X's dimensions, but for the last, which is the length of scale_out. Whatever is not fully
// known stays unset: the kernel checks the real shapes.
ort::Status* infer_linear_shape(const ort::CustomOp* op, ort::ShapeInferContext* context);

// The inference callback is not handed the interface, so registration leaves it here. Once two
// different runtimes have registered in one process, inference sets nothing any more.
void use_api_for_shapes(const ort::Api* api);

#endif  // NQ_ORT_LINEAR_SHAPE_H
