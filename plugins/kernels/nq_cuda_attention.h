// SPDX-License-Identifier: Apache-2.0
//
// Attention on an NVIDIA GPU over a key/value cache that may be paged and may hold 8 bits. Same
// rules as nq_cuda.h: the caller's stream and memory, no allocation, capturable into a CUDA graph,
// deterministic. Positions and page tables live in device memory, so that one captured graph serves
// every step and any subset of its sequences.
//
//   one token a sequence     nq_cuda_attend: head norms, rotation, append and attention, one launch
//   any number of tokens     nq_cuda_rotary_append, which writes the rotated queries to y, then
//                            nq_cuda_attend_many with q = y (its y may be the same)

#ifndef NQ_CUDA_ATTENTION_H
#define NQ_CUDA_ATTENTION_H

#include "nq_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

// The cache of one layer: pages of `page_tokens` tokens. Token j of sequence s is token
// j mod page_tokens of page page_table[s * table_stride + j / page_tokens]; sequences share a
// prefix by naming the same pages. Without a table, page s is all of sequence s: a contiguous cache
// whose capacity is page_tokens.
//
// With 8 bits a head's values x of a token are codes of one scale, the float16 not below
// max|x| / 127 and 2^-24: code = round(x / scale), so no value is off by more than scale / 2.
typedef struct nq_cuda_cache {
  int32_t bits;               // 16: values of the attention's type; 8: int8 codes with scales
  int32_t page_tokens;        // a power of two from 16; without a table any size
  int64_t pages;              // what keys and values hold; without a table, at least `sequences`
  void* keys;                 // [pages][kv_heads][page_tokens][head_dim]
  void* values;               // the same
  void* key_scales;           // float16 [pages][kv_heads][page_tokens]; 8 bits only
  void* value_scales;         // the same
  const int32_t* page_table;  // [sequences][table_stride], or null
  int64_t table_stride;       // pages of a sequence at most; its capacity is this * page_tokens
} nq_cuda_cache;

// Attention of one layer. All pointers are device pointers, aligned to 16 bytes, and so are the
// strides in bytes.
//
// New token t of sequence s is row starts[s] + t of q, k, v and y, and its place in the cache is
// positions[s] + t. It attends to the places up to its own, the last `window` of them if that is
// not 0. A sequence with a negative position is idle: its rows are left alone, and so are rows
// whose place is past the cache's capacity or on a page (of the table) that is not in the cache.
typedef struct nq_cuda_attention {
  nq_type type;  // NQ_FLOAT16 or NQ_BFLOAT16: q, k, v, y and a 16-bit cache
  int32_t sequences;
  int32_t heads;
  int32_t kv_heads;    // divides heads
  int32_t head_dim;    // a multiple of 16 up to 256
  int32_t max_tokens;  // new tokens of a sequence at most
  int32_t window;      // 0: none
  float soft_cap;      // c: scores become c tanh(score / c); 0: none
  float scale;         // of the scores, usually 1 / sqrt(head_dim)
  float norm_eps;
  const float* q_norm;       // [head_dim] RMS norm of each head before the rotation, or null
  const float* k_norm;       // both or none
  const float* frequencies;  // [head_dim / 2] radians a position; channels i, i + head_dim / 2 are
                             // rotated as a pair (RoFormer, section 3.4.2). Null: no rotation
  const int64_t* positions;  // [sequences] tokens that the cache held before
  const int32_t* starts;     // [sequences + 1] rows, at most max_tokens a sequence; or null for
                             // max_tokens rows of each sequence
  const void* q;             // [rows][heads][head_dim]
  const void* k;             // [rows][kv_heads][head_dim]; nq_cuda_attend_many reads neither k
  const void* v;             // nor v
  void* y;                   // [rows][heads][head_dim]
  int64_t q_stride;          // elements from one row to the next
  int64_t k_stride;
  int64_t v_stride;
  int64_t y_stride;
  nq_cuda_cache cache;
  void* workspace;  // aligned to 256 bytes; not looked at by nq_cuda_rotary_append
  size_t workspace_bytes;
} nq_cuda_attention;

// Writes the rotated keys and the values into the cache and the rotated queries to y, which may
// be q.
nq_status nq_cuda_rotary_append(const nq_cuda_attention* attention, void* stream);

// Bytes of workspace that suffice for nq_cuda_attend and nq_cuda_attend_many, for any fewer
// sequences and new tokens and any window too, on every GPU; needs no device and looks at no
// pointer but whether cache.page_table is null. 0 when the description is invalid. Unlike the
// linear layers' workspace it must be zero before its first use, and every call leaves it ready for
// the next, of whatever description it is large enough for.
size_t nq_cuda_attend_workspace_bytes(const nq_cuda_attention* attention);

// One token a sequence: `max_tokens` is 1 and `starts` null. Norms, rotates, appends, attends to
// the cache and the new token. Cached tokens, positions and page table are read ahead of the launch
// before this one: they must come from work that was complete when that one started (an earlier
// replay of a graph, or any ordinary launch in between).
nq_status nq_cuda_attend(const nq_cuda_attention* attention, void* stream);

// Any number of tokens a sequence, whose keys and values are in the cache already; q holds rotated
// queries and y may be q. Positions, starts and page table are read ahead as by nq_cuda_attend.
nq_status nq_cuda_attend_many(const nq_cuda_attention* attention, void* stream);

#ifdef __cplusplus
}
#endif

#endif  // NQ_CUDA_ATTENTION_H
