// SPDX-License-Identifier: Apache-2.0
//
// Where a decode step on an NVIDIA GPU begins and ends: the rows of the embedding table, and the
// greedy choice. Same rules as nq_cuda.h: the caller's stream and memory, no allocation, capturable
// into a CUDA graph, deterministic. Positions live in device memory, so that one captured graph
// serves every step.

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

// The greedy choice and what follows from it, for each sequence b: tokens[b] becomes the place of
// the largest of logits[b] (the first of equals), chosen[b][positions[b]] that token, and
// positions[b] grows by 1. A sequence whose position is outside `chosen` is left alone.
typedef struct nq_cuda_choice {
  const float* logits;  // [batch][vocabulary]
  int64_t batch;
  int64_t vocabulary;
  int64_t* tokens;  // [batch]
  int64_t* chosen;  // [batch][capacity]
  int64_t capacity;
  int64_t* positions;  // [batch]
  void* workspace;     // 16 bytes a sequence, zero before the first use; every call leaves it zero
} nq_cuda_choice;

nq_status nq_cuda_choose(const nq_cuda_choice* choice, void* stream);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_DECODE_H
