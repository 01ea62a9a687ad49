// SPDX-License-Identifier: Apache-2.0
//
// What a description of attention must fulfil. No CUDA here: the tests' stand-in for the library
// refuses what the library refuses.

#ifndef NQ_CUDA_ATTENTION_CHECK_H
#define NQ_CUDA_ATTENTION_CHECK_H

#include "nq_cuda_attention.h"

namespace nq_cuda {

// Sizes and types: all that the workspace depends on.
inline nq_status check_attention_shape(const nq_cuda_attention& a) {
  const nq_cuda_cache& cache = a.cache;
  if (a.type != NQ_FLOAT16 && a.type != NQ_BFLOAT16) return NQ_BAD_ARGUMENT;
  if (cache.bits != 16 && cache.bits != 8) return NQ_BAD_ARGUMENT;
  if (a.sequences < 1 || a.heads < 1 || a.kv_heads < 1 || a.max_tokens < 1 || a.window < 0) {
    return NQ_BAD_ARGUMENT;
  }
  if (a.heads % a.kv_heads != 0 || a.head_dim < 1) return NQ_BAD_ARGUMENT;
  if (a.head_dim % 16 != 0 || a.head_dim > 256) return NQ_NO_KERNEL;
  if (cache.page_tokens < 1 || cache.pages < 1) return NQ_BAD_ARGUMENT;
  if (cache.page_table != nullptr) {
    const bool power = (cache.page_tokens & (cache.page_tokens - 1)) == 0;
    if (!power || cache.page_tokens < 16 || cache.table_stride < 1) return NQ_BAD_ARGUMENT;
    if (cache.table_stride > NQ_MAX_DIM / cache.page_tokens) return NQ_TOO_LARGE;
  } else if (cache.pages < a.sequences) {
    return NQ_BAD_ARGUMENT;
  }
  if (a.sequences > 0xffff || a.heads > 0xffff || cache.pages > NQ_MAX_DIM ||
      static_cast<int64_t>(a.max_tokens) * a.sequences > NQ_MAX_DIM / a.heads ||
      cache.page_tokens > NQ_MAX_DIM / a.kv_heads / cache.pages) {
    return NQ_TOO_LARGE;
  }
  return NQ_OK;
}

// Tokens that a sequence may have, for a description whose shape is valid.
inline int64_t attention_capacity(const nq_cuda_cache& cache) {
  return cache.page_table == nullptr ? cache.page_tokens : cache.table_stride * cache.page_tokens;
}

// Everything. `appends`: keys and values are read, and heads are normed and rotated.
inline nq_status check_attention(const nq_cuda_attention& a, bool appends) {
  const nq_status status = check_attention_shape(a);
  if (status != NQ_OK) return status;
  const auto usable = [](const void* pointer, bool needed) {
    return pointer == nullptr ? !needed : reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  const auto fits = [&a](int64_t stride, int64_t heads) {
    return stride >= heads * a.head_dim && stride % 8 == 0;
  };
  const bool eight = a.cache.bits == 8;
  if (!usable(a.q, true) || !usable(a.y, true) || !usable(a.positions, true) ||
      !usable(a.starts, false) || !usable(a.cache.keys, true) || !usable(a.cache.values, true) ||
      !usable(a.cache.key_scales, eight) || !usable(a.cache.value_scales, eight) ||
      !usable(a.cache.page_table, false) || !fits(a.q_stride, a.heads) ||
      !fits(a.y_stride, a.heads)) {
    return NQ_BAD_ARGUMENT;
  }
  if (!(a.soft_cap >= 0.0f) || !(a.scale > 0.0f)) return NQ_BAD_ARGUMENT;
  if (!appends) return NQ_OK;
  if (!usable(a.k, true) || !usable(a.v, true) || !usable(a.frequencies, false) ||
      !usable(a.q_norm, false) || !usable(a.k_norm, false) || !fits(a.k_stride, a.kv_heads) ||
      !fits(a.v_stride, a.kv_heads)) {
    return NQ_BAD_ARGUMENT;
  }
  if ((a.q_norm == nullptr) != (a.k_norm == nullptr) || !(a.norm_eps >= 0.0f)) {
    return NQ_BAD_ARGUMENT;
  }
  return NQ_OK;
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_CHECK_H
