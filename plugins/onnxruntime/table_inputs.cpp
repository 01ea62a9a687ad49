// SPDX-License-Identifier: Apache-2.0

#include "table_inputs.h"

#include <inttypes.h>

#include "status.h"

namespace {

ort::Status* read_integer(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                          int64_t* value) {
  ort::Status* status =
      ort::call<ort::InfoGetInt64>(api, ort::kKernelInfoGetAttributeInt64)(info, name, value);
  if (status != nullptr) {
    ort::call<ort::ReleaseStatus>(api, ort::kReleaseStatus)(status);
    return ort::fail_table(api, ort::kInvalidGraph, "integer attribute '%s' is missing", name);
  }
  if (*value < 1 || *value > NQ_MAX_DIM) {
    return ort::fail_table(api, ort::kInvalidGraph, "attribute '%s' is %" PRId64, name, *value);
  }
  return nullptr;
}

ort::Status* check_matrix(const ort::Api* api, const char* name, const TensorShape& shape,
                          ort::ElementType type, int64_t width) {
  if (shape.type != type || shape.count != 2 || shape.dims[0] < 1 || shape.dims[1] != width) {
    return ort::fail_table(api, ort::kInvalidArgument,
                           "%s has another type or shape than [rows, %" PRId64 "]", name, width);
  }
  return nullptr;
}

}  // namespace

ort::Status* prepare_table(const ort::Api* api, const ort::KernelInfo* info, TableKernel* kernel) {
  kernel->api = api;
  NQ_ORT_RETURN(read_integer(api, info, "columns", &kernel->columns));
  NQ_ORT_RETURN(read_integer(api, info, "bits", &kernel->bits));
  NQ_ORT_RETURN(read_integer(api, info, "group_size", &kernel->group));
  size_t inputs = 0;
  NQ_ORT_RETURN(
      ort::call<ort::InfoGetInputCount>(api, ort::kKernelInfoGetInputCount)(info, &inputs));
  if (inputs != kTableInputs) {
    return ort::fail_table(api, ort::kInvalidGraph, "the node has %zu inputs, expected 3", inputs);
  }
  const int8_t byte = 0;  // stands for the data, so that sizes and groups are checked at once
  const nq_table table = {1,          kernel->columns, kernel->bits, kernel->group,
                          NQ_FLOAT32, &byte,           &byte};
  const nq_status status = nq_table_check(&table);
  if (status == NQ_OK) return nullptr;
  return ort::fail_table(api, ort::kInvalidGraph,
                         "columns %" PRId64 ", bits %" PRId64 ", group_size %" PRId64 ": %s",
                         kernel->columns, kernel->bits, kernel->group, nq_status_text(status));
}

ort::Status* read_table_call(const TableKernel& kernel, ort::KernelContext* context,
                             ort::ElementType type, TableCall* call) {
  const ort::Api* api = kernel.api;
  TensorShape shapes[kTableInputs];
  void* data[kTableInputs];
  for (size_t i = 0; i < kTableInputs; ++i) {
    NQ_ORT_RETURN(read_input(api, context, i, &shapes[i], &data[i]));
  }
  const int64_t groups =
      kernel.group >= kernel.columns ? 1 : (kernel.columns - 1) / kernel.group + 1;
  const int64_t bytes = (kernel.columns * kernel.bits + 7) / 8;
  if (shapes[kTableData].type != type) {
    return ort::fail_table(api, ort::kInvalidArgument, "the first input has another type");
  }
  NQ_ORT_RETURN(check_matrix(api, "codes", shapes[kTableCodes], ort::kInt8, bytes));
  NQ_ORT_RETURN(check_matrix(api, "scales", shapes[kTableScales], kernel.scale_type, groups));
  if (shapes[kTableCodes].dims[0] != shapes[kTableScales].dims[0]) {
    return ort::fail_table(api, ort::kInvalidArgument, "codes and scales have unequal rows");
  }
  call->shape = shapes[kTableData];
  call->data = data[kTableData];
  call->table = nq_table{shapes[kTableCodes].dims[0],
                         kernel.columns,
                         kernel.bits,
                         kernel.group,
                         kernel_type(kernel.scale_type),
                         static_cast<const int8_t*>(data[kTableCodes]),
                         data[kTableScales]};
  const nq_status status = nq_table_check(&call->table);
  return status == NQ_OK
             ? nullptr
             : ort::fail_table(api, ort::kInvalidArgument, "%s", nq_status_text(status));
}
