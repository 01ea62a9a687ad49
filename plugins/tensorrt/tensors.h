// SPDX-License-Identifier: Apache-2.0
//
// What the plugin's tensors must look like: position, type, format and dimensions.
//
// Inputs are X and then, for every projection, v, u, scale_in, scale_mid, scale_out and bias.

#ifndef NQ_TENSORRT_TENSORS_H
#define NQ_TENSORRT_TENSORS_H

#include "attributes.h"

namespace nq_tensorrt {

// Tensors of one projection, in their order.
enum Weight : int32_t { kV, kU, kScaleIn, kScaleMid, kScaleOut, kBias, kWeightCount };

// Position of a projection's tensor among the inputs; X is input 0.
constexpr int32_t input_of(int32_t projection, Weight weight) {
  return 1 + projection * kWeightCount + weight;
}
constexpr int32_t input_count(int32_t projections) { return 1 + projections * kWeightCount; }

// The kernels' name of an element type; X, Y and scale types only.
nq_type kernel_type(nvinfer1::DataType type);

// Whether the tensor at `index` (inputs first, then outputs) may have this type, given X's and the
// first scale's: X float16 or bfloat16, words int32, outputs as X, all scales of one type.
bool type_fits(const Attributes& attributes, int32_t index, nvinfer1::DataType type,
               nvinfer1::DataType x_type, nvinfer1::DataType scale_type);

// Checks the dimensions of the tensor at `index`; unknown ones (-1) pass. False, with the reason in
// `why`, when they are not what the attributes say.
bool dims_fit(const Attributes& attributes, int32_t index, const nvinfer1::Dims& dims, char* why,
              size_t why_bytes);

// Product of all dimensions of X but the last; NQ_MAX_DIM where one is unknown.
int64_t rows_of(const nvinfer1::Dims& x);

}  // namespace nq_tensorrt

#endif  // NQ_TENSORRT_TENSORS_H
