// SPDX-License-Identifier: Apache-2.0

#include "tensors.h"

#include <stdio.h>

namespace nq_tensorrt {

using nvinfer1::DataType;
using nvinfer1::Dims;

namespace {

constexpr const char* kWeightNames[] = {"v_packed",  "u_packed",  "scale_in",
                                        "scale_mid", "scale_out", "bias"};

bool is_half(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Shape {
  int32_t count;
  int64_t dims[2];
};

Shape tiles(int64_t rows, int64_t columns) {
  return {2,
          {ceil_div(rows, NQ_CUDA_TILE_ROWS),
           ceil_div(columns, NQ_CUDA_TILE_COLUMNS) * NQ_CUDA_TILE_WORDS}};
}

Shape wanted_weight(const Attributes& attributes, int32_t projection, Weight weight) {
  const int64_t n = attributes.in_features;
  const int64_t rank = attributes.rank[projection];
  const int64_t m = attributes.out_features[projection];
  switch (weight) {
    case kV:
      return tiles(rank, n);
    case kU:
      return tiles(m, rank);
    case kScaleIn:
      return {1, {n, 0}};
    case kScaleMid:
      return {1, {attributes.has_scale_mid[projection] ? rank : 1, 0}};
    case kScaleOut:
      return {1, {m, 0}};
    default:
      return {1, {attributes.has_bias[projection] ? m : 1, 0}};
  }
}

// "2 x 128", for messages.
void describe(const int64_t* dims, int32_t count, char* text, size_t bytes) {
  size_t used = 0;
  text[0] = '\0';
  for (int32_t i = 0; i < count && used < bytes; ++i) {
    const int more = snprintf(text + used, bytes - used, i == 0 ? "%lld" : " x %lld",
                              static_cast<long long>(dims[i]));
    used += static_cast<size_t>(more);
  }
}

}  // namespace

nq_type kernel_type(DataType type) {
  if (type == DataType::kHALF) return NQ_FLOAT16;
  return type == DataType::kBF16 ? NQ_BFLOAT16 : NQ_FLOAT32;
}

bool type_fits(const Attributes& attributes, int32_t index, DataType type, DataType x_type,
               DataType scale_type) {
  if (index == 0) return is_half(type);
  if (index >= input_count(attributes.count)) return type == x_type;
  const int32_t weight = (index - 1) % kWeightCount;
  if (weight == kV || weight == kU) return type == DataType::kINT32;
  if (index == input_of(0, kScaleIn)) return is_half(type) || type == DataType::kFLOAT;
  return type == scale_type;
}

bool dims_fit(const Attributes& attributes, int32_t index, const Dims& dims, char* why,
              size_t why_bytes) {
  const int32_t inputs = input_count(attributes.count);
  if (index == 0 || index >= inputs) {
    const int64_t last =
        index == 0 ? attributes.in_features : attributes.out_features[index - inputs];
    const int32_t count = dims.nbDims;
    if (count >= 1 && (dims.d[count - 1] == last || dims.d[count - 1] == -1)) return true;
    snprintf(why, why_bytes, "the last dimension of %s is %lld, and the attributes say %lld",
             index == 0 ? "X" : "Y", count >= 1 ? static_cast<long long>(dims.d[count - 1]) : 0LL,
             static_cast<long long>(last));
    return false;
  }
  const int32_t projection = (index - 1) / kWeightCount;
  const Weight weight = static_cast<Weight>((index - 1) % kWeightCount);
  const Shape wanted = wanted_weight(attributes, projection, weight);
  bool good = dims.nbDims == wanted.count;
  for (int32_t i = 0; good && i < wanted.count; ++i) {
    good = dims.d[i] == wanted.dims[i] || dims.d[i] == -1;
  }
  if (good) return true;
  char is[96], should[96];
  describe(dims.d, dims.nbDims, is, sizeof is);
  describe(wanted.dims, wanted.count, should, sizeof should);
  snprintf(why, why_bytes, "%s of projection %d is %s, and the attributes need %s",
           kWeightNames[weight], projection, is, should);
  return false;
}

int64_t rows_of(const Dims& x) {
  int64_t rows = 1;
  for (int32_t i = 0; i + 1 < x.nbDims; ++i) {
    if (x.d[i] < 0) return NQ_MAX_DIM;
    // Too many rows are refused by the kernels; the product must only not overflow.
    if (x.d[i] > 0 && rows > INT64_MAX / x.d[i]) return INT64_MAX;
    rows *= x.d[i];
  }
  return rows;
}

}  // namespace nq_tensorrt
