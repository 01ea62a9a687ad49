// SPDX-License-Identifier: Apache-2.0
//
// From TensorRT's tensors to the kernels: the workspace of a call, and the call.

#ifndef NQ_TENSORRT_FORWARD_H
#define NQ_TENSORRT_FORWARD_H

#include "tensors.h"

namespace nq_tensorrt {

// Bytes that any call of up to `rows` rows needs, on every GPU that this build has code for; needs
// no GPU, since engines are also built where there is none.
size_t workspace_bound(const Attributes& attributes, nvinfer1::DataType x_type,
                       nvinfer1::DataType scale_type, int64_t rows);

// Enqueues one call. Allocates nothing and keeps nothing, so that calls on several streams and
// under graph capture need no care. Rows that don't begin at multiples of 16 bytes go through
// spaced copies in the workspace.
nq_status forward(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs,
                  const void* const* data, void* const* outputs, void* workspace, void* stream);

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_FORWARD_H
