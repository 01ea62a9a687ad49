// SPDX-License-Identifier: Apache-2.0
//
// Attention over a cache that is written in place, on the CPU, in float32, the cache in float32 or
// float16: a small C interface that knows no framework. Query heads share key heads (grouped-query
// attention, arXiv 2305.13245), and queries and keys are rotated by position (rotary embedding,
// arXiv 2104.09864, halves not interleaved). Nothing here allocates, throws or starts threads.

#ifndef NQ_ATTENTION_H
#define NQ_ATTENTION_H

#include "nq_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct nq_attention {
  int64_t heads;     // query heads, a multiple of kv_heads
  int64_t kv_heads;  // key and value heads
  int64_t head_dim;  // a multiple of 16, at most 1024
  int64_t window;    // positions that one sees, itself included; 0 for all
  float scale;       // of the scores
  nq_type cache;     // of keys and values: float32 or float16
} nq_attention;

// Says whether the description is usable.
nq_status nq_attention_check(const nq_attention* attention);

// out[h * out_stride + d] = rotated x[h * head_dim + d] * scale for `heads` heads of one token;
// cosines and sines are head_dim / 2 floats of its position.
void nq_rotate(const float* x, int64_t heads, int64_t head_dim, const float* cosines,
               const float* sines, float scale, float* out, int64_t out_stride);

// out[i] = x[i] in the cache's type, rounded to nearest even.
void nq_keep(const nq_attention* attention, const float* x, int64_t count, void* out);

// Bytes of scratch memory for `rows` tokens of which the last one is at position `last`.
size_t nq_attend_scratch(const nq_attention* attention, int64_t rows, int64_t last);

// Attention of one key head: `rows` tokens from position `first` on.
//
// queries: [rows][heads / kv_heads][head_dim], rotated and scaled. keys, values: [position]
// [head_dim] in the cache's type, valid up to the last token's own. y: the group's first head of
// the first token; heads are head_dim floats apart, tokens y_stride floats. scratch: aligned to 64.
void nq_attend(const nq_attention* attention, const float* queries, int64_t rows, int64_t first,
               const void* keys, const void* values, float* y, int64_t y_stride, void* scratch);

#ifdef __cplusplus
}
#endif

#endif  // NQ_ATTENTION_H
