// SPDX-License-Identifier: Apache-2.0
//
// Rows of a table of 16-bit values on an NVIDIA GPU, as runtimes/torch looks them up; nq_cuda_table.h
// has what other runtimes use. Same rules as nq_cuda.h.

#ifndef NQ_CUDA_DECODE_H
#define NQ_CUDA_DECODE_H

#include "nq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rows `tokens[i]` of a table to `out`, both [..][row_bytes], row_bytes a multiple of 16. The table
// may be pinned host memory. An ordinary launch: nothing before it overlaps what follows.
nq_status nq_cuda_gather_rows(const void* table, int64_t table_rows, int64_t row_bytes,
                              const int64_t* tokens, int64_t count, void* out, void* stream);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_DECODE_H
