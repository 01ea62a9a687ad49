// SPDX-License-Identifier: Apache-2.0
//
// What a decoder needs on an NVIDIA GPU between its binary linear layers: rotary embedding with the
// key/value cache, and attention of one new token over that cache. Same rules as nq_cuda.h: the
// caller's stream and memory, no allocation, capturable into a CUDA graph, deterministic.
//
// The cache of one layer is two arrays [batch][kv_heads][capacity][head_dim]. Positions live in
// device memory, so that one captured graph serves every step.

#ifndef NQ_CUDA_DECODE_H
#define NQ_CUDA_DECODE_H

#include "nq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  NQ_CUDA_MAX_SPLITS = 32  // most pieces that the attention of one head is cut into
};

// Attention of one layer. All pointers are device pointers, aligned to 16 bytes, and so are the
// strides in bytes. Row b * tokens + t of q, k, v and y is token t of sequence b, and its place in
// the cache is positions[b] + t; rows whose place is outside the cache are left out.
typedef struct nq_cuda_attention {
  nq_type type;  // NQ_FLOAT16 or NQ_BFLOAT16: q, k, v, y, cache and norm weights
  int32_t batch;
  int32_t heads;
  int32_t kv_heads;  // divides heads
  int32_t head_dim;  // 64, 128 or 256
  int64_t tokens;    // new tokens of each sequence
  int64_t capacity;
  const void* q;     // [batch * tokens][heads][head_dim]
  const void* k;     // [batch * tokens][kv_heads][head_dim]
  const void* v;     // [batch * tokens][kv_heads][head_dim]
  int64_t q_stride;  // elements from one row to the next
  int64_t k_stride;
  int64_t v_stride;
  void* keys;
  void* values;
  const int64_t* positions;  // [batch] tokens that the cache held before
  const float* frequencies;  // [head_dim / 2] radians a position; channels i, i + head_dim / 2 pair
  const void* q_norm;        // [head_dim] RMS norm of each head before the rotation, or null
  const void* k_norm;        // both or none
  float norm_eps;
  float scale;  // of the scores, usually 1 / sqrt(head_dim)
  void* y;      // [batch * tokens][heads][head_dim]
  int64_t y_stride;
  void* workspace;  // nq_cuda_attend only
  size_t workspace_bytes;
} nq_cuda_attention;

// Any number of tokens: writes the rotated queries to y (which may be q) and the rotated keys and
// the values into the cache.
nq_status nq_cuda_rotary_append(const nq_cuda_attention* attention, void* stream);

// Bytes of workspace for nq_cuda_attend on the current device; 0 when the description is invalid.
// Unlike the linear layers' it must be zero before its first use, and every call leaves its
// counters zero.
size_t nq_cuda_attend_workspace_bytes(const nq_cuda_attention* attention);

// One token a sequence (`tokens` is 1): rotates, appends, attends to the cache and the new token,
// all in one launch. Cached tokens and positions are read ahead of the launch before this one: they
// must come from work that was complete when that one started (an earlier replay of a graph, or
// any ordinary launch in between).
nq_status nq_cuda_attend(const nq_cuda_attention* attention, void* stream);

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
