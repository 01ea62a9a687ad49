// SPDX-License-Identifier: Apache-2.0
//
// Where tokens lie in the cache, and the 8-bit form of a head.

#ifndef NQ_CUDA_ATTENTION_CACHE_CUH
#define NQ_CUDA_ATTENTION_CACHE_CUH

#include "cuda/attention/check.h"
#include "cuda/attention/instructions.cuh"

namespace nq_cuda {

// How the products of attention are computed: from 16-bit values of a type, or from int8 codes,
// which are whole numbers and exact in float16.
enum class Core { kHalf, kBfloat, kCodes };

template <Core C>
constexpr nq_type kProduct = C == Core::kBfloat ? NQ_BFLOAT16 : NQ_FLOAT16;

// The smallest of an 8-bit head's scales: an all-zero head has it too, so no scale is 0.
constexpr float kSmallestScale = 5.9604645e-8f;  // 2^-24

// The tokens of one sequence and key/value head. Slots count tokens over the whole cache; 16 tokens
// from a multiple of 16 on have slots in a row. check_attention_shape keeps slots within int32.
struct Tokens {
  const int32_t* table;  // null: one page
  int page, page_tokens, pages, kv, kv_heads, shift;

  __device__ Tokens(const nq_cuda_attention& a, int64_t sequence, int kv_head)
      : table(nullptr),
        page(static_cast<int>(sequence)),
        page_tokens(a.cache.page_tokens),
        pages(static_cast<int>(a.cache.pages)),
        kv(kv_head),
        kv_heads(a.kv_heads),
        shift(31) {
    if (a.cache.page_table == nullptr) return;
    table = a.cache.page_table + sequence * a.cache.table_stride;
    shift = 31 - __clz(page_tokens);
  }

  __device__ int page_of(int token) const {
    return table == nullptr ? page : table[token >> shift];
  }

  __device__ bool has(int token) const {
    return static_cast<unsigned>(page_of(token)) < static_cast<unsigned>(pages);
  }

  // A page outside the cache, of which no token is used, reads as page 0.
  __device__ int slot(int token) const {
    const int named = page_of(token);
    const int safe = static_cast<unsigned>(named) < static_cast<unsigned>(pages) ? named : 0;
    const int inside = table == nullptr ? token : token & (page_tokens - 1);
    return (safe * kv_heads + kv) * page_tokens + inside;
  }
};

// Eight codes as float16, two to a word. 0x64 above a byte u is the float16 1024 + u.
__device__ __forceinline__ uint4 halves_of(uint2 codes) {
  const uint32_t bias = 0x64806480u;  // 1152
  const uint32_t x = codes.x ^ 0x80808080u, y = codes.y ^ 0x80808080u;
  return make_uint4(subtract_halves(__byte_perm(x, 0x64646464u, 0x4140), bias),
                    subtract_halves(__byte_perm(x, 0x64646464u, 0x4342), bias),
                    subtract_halves(__byte_perm(y, 0x64646464u, 0x4140), bias),
                    subtract_halves(__byte_perm(y, 0x64646464u, 0x4342), bias));
}

// The power of two that brings a query with the largest magnitude `most` to between 1 and 2, so
// that float16 holds it whatever its type was; within 2^-100 and 2^99.
__device__ __forceinline__ float range_of(float most) {
  const uint32_t exponent = __float_as_uint(most) & 0x7f800000u;
  return __uint_as_float(min(max(exponent, 0x0d800000u), 0x71000000u));
}

// The scale of a head whose largest magnitude is `most`, rounded up to float16.
__device__ __forceinline__ __half scale_of(float most) {
  const float wanted = fminf(fmaxf(most / 127.0f, kSmallestScale), 65504.0f);
  const __half near = __float2half_rn(wanted);
  if (__half2float(near) >= wanted) return near;
  return __ushort_as_half(static_cast<unsigned short>(__half_as_ushort(near) + 1));
}

__device__ __forceinline__ int8_t code_of(float value, float scale) {
  return static_cast<int8_t>(__float2int_rn(fminf(fmaxf(value / scale, -127.0f), 127.0f)));
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_CACHE_CUH
