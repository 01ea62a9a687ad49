// SPDX-License-Identifier: Apache-2.0
//
// Attributes and inputs of the operators on tables, and the checks that stand between a model file
// and the kernels.

#ifndef NQ_ORT_TABLE_INPUTS_H
#define NQ_ORT_TABLE_INPUTS_H

#include "../kernels/nq_table.h"
#include "tensors.h"

// Positions of the three inputs; the first is the indices or X.
enum TableInput : size_t { kTableData = 0, kTableCodes = 1, kTableScales = 2, kTableInputs = 3 };

// A node of a session.
struct TableKernel {
  const ort::Api* api;
  ort::ElementType scale_type;
  int64_t columns;
  int64_t bits;
  int64_t group;
};

// One call: the table, and the first input.
struct TableCall {
  nq_table table;
  TensorShape shape;
  const void* data;
};

// Reads the attributes and refuses values outside the schema.
ort::Status* prepare_table(const ort::Api* api, const ort::KernelInfo* info, TableKernel* kernel);

// Reads and checks the inputs; the first one has type `type`.
ort::Status* read_table_call(const TableKernel& kernel, ort::KernelContext* context,
                             ort::ElementType type, TableCall* call);

#endif  // NQ_ORT_TABLE_INPUTS_H
