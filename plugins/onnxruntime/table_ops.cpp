// SPDX-License-Identifier: Apache-2.0

#include "table_ops.h"

#include <stdlib.h>

#include "plain_op.h"
#include "status.h"
#include "table_inputs.h"
#include "workspace.h"

namespace {

struct TableOp {
  ort::CustomOp op;  // first: the callbacks get its address
  bool head;
  ort::ElementType scale_type;
};

const TableOp& op_of(const ort::CustomOp* op) { return *reinterpret_cast<const TableOp*>(op); }

// Product of all dimensions but the last `skip`; false when they are invalid or too many.
bool count_of(const TensorShape& shape, size_t skip, int64_t* count) {
  *count = 1;
  for (size_t i = 0; i + skip < shape.count; ++i) {
    if (shape.dims[i] < 0 || __builtin_mul_overflow(*count, shape.dims[i], count)) return false;
  }
  return true;
}

ort::Status* embed(void* state, ort::KernelContext* context) {
  const TableKernel& kernel = *static_cast<const TableKernel*>(state);
  const ort::Api* api = kernel.api;
  TableCall call;
  NQ_ORT_RETURN(read_table_call(kernel, context, ort::kInt64, &call));
  int64_t count = 0;
  int64_t bytes = 0;
  TensorShape& shape = call.shape;
  if (shape.count + 1 > kMaxDimensions || !count_of(shape, 0, &count) ||
      __builtin_mul_overflow(count, call.table.columns * 4, &bytes)) {
    return ort::fail_table(api, ort::kInvalidArgument, "the dimensions of the indices are invalid");
  }
  shape.dims[shape.count++] = call.table.columns;
  void* y = nullptr;
  NQ_ORT_RETURN(make_output(api, context, 0, shape, &y));
  if (count == 0) return nullptr;
  const nq_status status = nq_table_gather(&call.table, static_cast<const int64_t*>(call.data),
                                           count, static_cast<float*>(y));
  if (status == NQ_OK) return nullptr;
  return ort::fail_table(api, ort::kInvalidArgument, "an index is not in [0, %lld)",
                         static_cast<long long>(call.table.rows));
}

struct Product {
  const nq_table* table;
  const void* workspace;
  int64_t x_rows;
  int64_t chunk;
  float* y;
};

void run_chunk(void* data, size_t index) {
  const Product& product = *static_cast<const Product*>(data);
  const int64_t rows = product.table->rows;
  const int64_t begin = static_cast<int64_t>(index) * product.chunk;
  const int64_t end = begin + product.chunk < rows ? begin + product.chunk : rows;
  // The call was checked before: it cannot fail.
  nq_table_product(product.table, product.workspace, product.x_rows, begin, end, product.y);
}

ort::Status* multiply(void* state, ort::KernelContext* context) {
  constexpr int64_t kMostRows = 256;        // vectors arranged at a time
  constexpr int64_t kWorthwhile = 1 << 19;  // multiply-adds of a chunk: some 20 microseconds
  constexpr int64_t kStep = 64;
  const TableKernel& kernel = *static_cast<const TableKernel*>(state);
  const ort::Api* api = kernel.api;
  TableCall call;
  NQ_ORT_RETURN(read_table_call(kernel, context, ort::kFloat, &call));
  const nq_table& table = call.table;
  TensorShape& shape = call.shape;
  int64_t count = 0;
  int64_t bytes = 0;
  if (shape.count < 1 || shape.dims[shape.count - 1] != table.columns ||
      !count_of(shape, 1, &count) || __builtin_mul_overflow(count, table.rows * 4, &bytes)) {
    return ort::fail_table(api, ort::kInvalidArgument, "the dimensions of X are invalid");
  }
  shape.dims[shape.count - 1] = table.rows;
  void* data = nullptr;
  NQ_ORT_RETURN(make_output(api, context, 0, shape, &data));
  if (count == 0) return nullptr;
  const int64_t most = count < kMostRows ? count : kMostRows;
  const Workspace workspace(nq_table_workspace(&table, most));
  if (workspace.data() == nullptr || nq_cpu_isa() == nullptr) {
    return ort::fail_table(api, ort::kFail, "no scratch memory, or no instruction set");
  }
  const float* x = static_cast<const float*>(call.data);
  float* y = static_cast<float*>(data);
  for (int64_t row = 0; row < count; row += most) {
    const int64_t rows = count - row < most ? count - row : most;
    const nq_status status =
        nq_table_arrange(&table, x + row * table.columns, rows, workspace.data());
    if (status != NQ_OK) return ort::fail_table(api, ort::kFail, "%s", nq_status_text(status));
    const int64_t work = kStep * table.columns * rows;
    const int64_t steps = work < kWorthwhile ? (kWorthwhile + work - 1) / work : 1;
    Product product = {&table, workspace.data(), rows, steps * kStep, y + row * table.rows};
    const int64_t chunks = (table.rows + product.chunk - 1) / product.chunk;
    if (chunks == 1) {
      run_chunk(&product, 0);
    } else {
      NQ_ORT_RETURN(ort::call<ort::ContextParallelFor>(api, ort::kKernelContextParallelFor)(
          context, run_chunk, static_cast<size_t>(chunks), 0, &product));
    }
  }
  return nullptr;
}

ort::Status* create(const ort::CustomOp* op, const ort::Api* api, const ort::KernelInfo* info,
                    void** state) {
  return make_state<TableKernel>(api, state, free, [=](TableKernel* kernel) {
    kernel->scale_type = op_of(op).scale_type;
    return prepare_table(api, info, kernel);
  });
}

const char* name(const ort::CustomOp* op) {
  return op_of(op).head ? "NanoQuantHead" : "NanoQuantEmbedding";
}
ort::ElementType input_type(const ort::CustomOp* op, size_t index) {
  if (index == kTableCodes) return ort::kInt8;
  if (index == kTableScales) return op_of(op).scale_type;
  return op_of(op).head ? ort::kFloat : ort::kInt64;
}
ort::ElementType output_type(const ort::CustomOp*, size_t) { return ort::kFloat; }

constexpr TableOp make_op(bool head, ort::ElementType scale_type) {
  const OpKernel kernel = {create, head ? multiply : embed, free, cpu_provider};
  return TableOp{plain_op({name, always<kTableInputs>, input_type, always<1>, output_type}, kernel),
                 head, scale_type};
}

const TableOp kOps[] = {
    make_op(false, ort::kFloat),  make_op(true, ort::kFloat),     make_op(false, ort::kFloat16),
    make_op(true, ort::kFloat16), make_op(false, ort::kBfloat16), make_op(true, ort::kBfloat16),
};

}  // namespace

int table_op_count() { return static_cast<int>(sizeof kOps / sizeof kOps[0]); }

const ort::CustomOp* table_op(int index) { return &kOps[index].op; }
