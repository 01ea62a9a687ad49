// SPDX-License-Identifier: Apache-2.0
//
// com.nanoquant::NanoQuantEmbedding and NanoQuantHead, version 1, on the CPU: a table of 8- or
// 4-bit rows, looked up or multiplied with, straight from the file's mapped bytes.

#ifndef NQ_ORT_TABLE_OPS_H
#define NQ_ORT_TABLE_OPS_H

#include "ort_abi.h"

int table_op_count();

// The operator of that index; lives as long as the library.
const ort::CustomOp* table_op(int index);

#endif  // NQ_ORT_TABLE_OPS_H
