// SPDX-License-Identifier: Apache-2.0
//
// Checks of attributes and shapes. Everything read from the file is compared with what the kernels
// will touch before they touch it.

#include "linear_inputs.h"

#include <inttypes.h>
#include <limits.h>

#include "status.h"

namespace {

const char* const kInputNames[kInputCount] = {"X",         "v_packed",  "u_packed", "scale_in",
                                              "scale_mid", "scale_out", "bias"};

const char* type_name(ort::ElementType type) {
  switch (type) {
    case ort::kFloat:
      return "float32";
    case ort::kFloat16:
      return "float16";
    case ort::kBfloat16:
      return "bfloat16";
    case ort::kInt8:
      return "int8";
    case ort::kUndefined:
      break;
    case ort::kInt32:
      return "int32";
    case ort::kInt64:
      return "int64";
  }
  return "another type";
}

int64_t words_of(int64_t columns) { return (columns + 31) / 32; }

// Dimensions of a packed sign matrix in a layout.
void packed_shape(int64_t layout, int64_t rows, int64_t columns, int64_t* first, int64_t* second) {
  if (layout == NQ_LAYOUT_TILES_16X256) {
    *first = (rows + 15) / 16;
    *second = (columns + 255) / 256 * 128;
  } else {
    *first = rows;
    *second = words_of(columns);
  }
}

}  // namespace

ort::Status* read_attributes(const ort::Api* api, const ort::KernelInfo* info,
                             LinearAttributes* attributes) {
  NQ_ORT_RETURN(read_integer(api, info, "in_features", 1, NQ_MAX_DIM, &attributes->in_features));
  NQ_ORT_RETURN(read_integer(api, info, "rank", 1, NQ_MAX_DIM, &attributes->rank));
  NQ_ORT_RETURN(read_integer(api, info, "out_features", 1, NQ_MAX_DIM, &attributes->out_features));
  NQ_ORT_RETURN(read_integer(api, info, "has_scale_mid", 0, 1, &attributes->has_scale_mid));
  NQ_ORT_RETURN(read_integer(api, info, "has_bias", 0, 1, &attributes->has_bias));
  NQ_ORT_RETURN(read_integer(api, info, "layout", INT64_MIN, INT64_MAX, &attributes->layout));
  if (attributes->layout != NQ_LAYOUT_ROWS_LSB_FIRST &&
      attributes->layout != NQ_LAYOUT_TILES_16X256) {
    return ort::fail(api, ort::kInvalidGraph,
                     "layout %" PRId64
                     " is not one this library reads (it reads 0 and 1); "
                     "a newer nanoquant-edge may have written the model",
                     attributes->layout);
  }
  return nullptr;
}

ort::Status* check_weight(const ort::Api* api, const LinearAttributes& attributes,
                          ort::ElementType scale_type, size_t index, const TensorShape& shape) {
  const bool words = index == kInputV || index == kInputU;
  int64_t first = 0;
  int64_t second = 0;
  switch (index) {
    case kInputV:
      packed_shape(attributes.layout, attributes.rank, attributes.in_features, &first, &second);
      break;
    case kInputU:
      packed_shape(attributes.layout, attributes.out_features, attributes.rank, &first, &second);
      break;
    case kInputScaleIn:
      first = attributes.in_features;
      break;
    case kInputScaleMid:
      first = attributes.has_scale_mid ? attributes.rank : 1;
      break;
    case kInputScaleOut:
      first = attributes.out_features;
      break;
    default:
      first = attributes.has_bias ? attributes.out_features : 1;
      break;
  }
  const ort::ElementType wanted = words ? ort::kInt32 : scale_type;
  if (shape.type != wanted) {
    return ort::fail(api, ort::kInvalidArgument, "%s is %s, expected %s", kInputNames[index],
                     type_name(shape.type), type_name(wanted));
  }
  const size_t count = words ? 2 : 1;
  if (shape.count != count) {
    return ort::fail(api, ort::kInvalidArgument, "%s has %zu dimensions, expected %zu",
                     kInputNames[index], shape.count, count);
  }
  if (shape.dims[0] != first || (words && shape.dims[1] != second)) {
    if (words) {
      return ort::fail(api, ort::kInvalidArgument,
                       "%s is %" PRId64 " x %" PRId64 " words, but in_features %" PRId64
                       ", rank %" PRId64 ", out_features %" PRId64 " need %" PRId64 " x %" PRId64,
                       kInputNames[index], shape.dims[0], shape.dims[1], attributes.in_features,
                       attributes.rank, attributes.out_features, first, second);
    }
    return ort::fail(api, ort::kInvalidArgument,
                     "%s has %" PRId64 " entries, but the attributes need %" PRId64,
                     kInputNames[index], shape.dims[0], first);
  }
  return nullptr;
}

ort::Status* check_x(const ort::Api* api, const LinearAttributes& attributes,
                     ort::ElementType x_type, const TensorShape& shape, int64_t* rows) {
  if (shape.type != x_type) {
    return ort::fail(api, ort::kInvalidArgument, "X is %s, expected %s", type_name(shape.type),
                     type_name(x_type));
  }
  if (shape.count < 1) {
    return ort::fail(api, ort::kInvalidArgument,
                     "X is a scalar; it needs a last dimension of %" PRId64,
                     attributes.in_features);
  }
  if (shape.dims[shape.count - 1] != attributes.in_features) {
    return ort::fail(api, ort::kInvalidArgument,
                     "the last dimension of X is %" PRId64 ", but in_features is %" PRId64,
                     shape.dims[shape.count - 1], attributes.in_features);
  }
  *rows = 1;
  for (size_t i = 0; i + 1 < shape.count; ++i) {
    if (shape.dims[i] < 0 || __builtin_mul_overflow(*rows, shape.dims[i], rows)) {
      return ort::fail(api, ort::kInvalidArgument, "the dimensions of X are invalid");
    }
  }
  // Y may be far larger than X: its size in bytes has to fit as well.
  int64_t bytes = 0;
  if (__builtin_mul_overflow(*rows, attributes.out_features, &bytes) ||
      __builtin_mul_overflow(bytes, static_cast<int64_t>(sizeof(float)), &bytes)) {
    return ort::fail(api, ort::kInvalidArgument,
                     "%" PRId64 " rows of %" PRId64 " output features are too many", *rows,
                     attributes.out_features);
  }
  return nullptr;
}

nq_linear describe_layer(const LinearAttributes& attributes, ort::ElementType scale_type,
                         const void* const* data) {
  return nq_linear{
      attributes.in_features,
      attributes.rank,
      attributes.out_features,
      static_cast<nq_layout>(attributes.layout),
      kernel_type(scale_type),
      static_cast<const int32_t*>(data[kInputV]),
      static_cast<const int32_t*>(data[kInputU]),
      data[kInputScaleIn],
      attributes.has_scale_mid ? data[kInputScaleMid] : nullptr,
      data[kInputScaleOut],
      attributes.has_bias ? data[kInputBias] : nullptr,
  };
}
