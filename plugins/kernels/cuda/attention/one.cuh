// SPDX-License-Identifier: Apache-2.0
//
// Attention of one token a row. The cached tokens of a key/value head are cut into splits, a block
// each; the warps of a block take tiles of its tokens in turn, each with a running softmax of its
// own for up to eight query heads, and nothing is shared between them until the end. The last block
// of a row to finish adds the splits' results up, always in one order.
//
// Products run transposed on the tensor cores, keys times queries and values times weights, so that
// tokens and channels are the long side and the eight columns are query heads. Cached keys come
// from memory as fragments (a lane's 16 bytes are columns of two steps, in an order that the
// queries share); of values, two tokens' pairs of channels are interleaved in registers. The next
// tile's keys are asked for when this one's are used up, and its values likewise.

#ifndef NQ_CUDA_ATTENTION_ONE_CUH
#define NQ_CUDA_ATTENTION_ONE_CUH

#include "cuda/attention/head.cuh"
#include "cuda/attention/run.h"

namespace nq_cuda {

constexpr int kFewWarps = 4;
constexpr int kColumns = 8;  // query heads of a block: columns of a product

// Warps of a block where a row's tokens are split: more of them, so that fewer results are added
// up.
template <int D>
constexpr int kMostWarps = D <= 128 ? 8 : kFewWarps;

// Tokens of a warp's tile; larger rooms fill the registers sooner.
template <int D>
constexpr int kTile = D <= 96 ? 32 : 16;

// Fewest tokens of a split: adding up two splits takes longer than a second tile.
constexpr int kLeastSplit = 128;

// How the heads of a row are shared out; the same on the host and in the kernel.
__host__ __device__ inline int pieces_of(const nq_cuda_attention& a) {
  return (a.heads / a.kv_heads + kColumns - 1) / kColumns;
}

// Floats of a split's result: outputs of each head, then maxima, then sums.
__host__ __device__ inline int64_t partial_floats(const nq_cuda_attention& a) {
  return kColumns * static_cast<int64_t>(a.head_dim + 4);
}

// What a warp holds of a tile: for each 16 tokens, key words of rows g and g + 8 and value words of
// the tokens 2 q, 2 q + 1, 2 q + 8, 2 q + 9, where g = lane / 4 and q = lane % 4; and scales.
template <Core C, int D>
struct Tile {
  static constexpr int kGroups = kTile<D> / 16;
  static constexpr int kKeyBlocks = D / 32;                           // of 32 channels
  static constexpr int kValueBlocks = (D + 63) / 64;                  // of 64 channels
  using Words = std::conditional_t<C == Core::kCodes, uint2, uint4>;  // eight channels

  Words keys[kGroups][2][kKeyBlocks];
  Words values[kGroups][4][kValueBlocks];
  float key_scales[kGroups][2], value_scales[kGroups][2];

  static __device__ __forceinline__ Words words(const void* base, int64_t at) {
    return *reinterpret_cast<const Words*>(static_cast<const char*>(base) +
                                           at * static_cast<int>(sizeof(Words) / 8));
  }
  static __device__ __forceinline__ uint4 halves(const uint4& words) { return words; }
  static __device__ __forceinline__ uint4 halves(const uint2& words) { return halves_of(words); }

  // Keys of the tokens in [begin, end), zeros for others.
  __device__ __forceinline__ void load_keys(const nq_cuda_attention& a, const int (&slots)[kGroups],
                                            int token, int begin, int end, int lane) {
    const int g = lane / 4, q = lane % 4, d = a.head_dim;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int row = 16 * i + 8 * below + g;
        const bool there = token + row >= begin && token + row < end;
        const int64_t slot = slots[i] + 8 * below + g;
        key_scales[i][below] = 1.0f;
        if (C == Core::kCodes && there) {
          key_scales[i][below] = load_value(a.cache.key_scales, slot, NQ_FLOAT16);
        }
#pragma unroll
        for (int j = 0; j < kKeyBlocks; ++j) {
          const int channel = 32 * j + 8 * q;
          keys[i][below][j] = Words();
          if (there && channel < d) keys[i][below][j] = words(a.cache.keys, slot * d + channel);
        }
      }
    }
  }

  __device__ __forceinline__ void load_values(const nq_cuda_attention& a,
                                              const int (&slots)[kGroups], int token, int begin,
                                              int end, int lane) {
    const int g = lane / 4, q = lane % 4, d = a.head_dim;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const int row = token + 16 * i + 8 * below + g;
        value_scales[i][below] = 1.0f;
        if (C == Core::kCodes && row >= begin && row < end) {
          value_scales[i][below] =
              load_value(a.cache.value_scales, slots[i] + 8 * below + g, NQ_FLOAT16);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int inside = 2 * q + n % 2 + 8 * (n / 2), row = token + 16 * i + inside;
        const int64_t slot = slots[i] + inside;
#pragma unroll
        for (int m = 0; m < kValueBlocks; ++m) {
          const int channel = 64 * m + 8 * g;
          values[i][n][m] = Words();
          if (row >= begin && row < end && channel < d) {
            values[i][n][m] = words(a.cache.values, slot * d + channel);
          }
        }
      }
    }
  }

  // The new token, which no load has seen, from shared memory, where it lies as in the cache.
  __device__ __forceinline__ void insert(const void* key, const void* value,
                                         const float (&scales)[2], int inside, int d, int lane) {
    const int g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        if (16 * i + 8 * below + g != inside) continue;
        if constexpr (C == Core::kCodes) {
          key_scales[i][below] = scales[0];
          value_scales[i][below] = scales[1];
        }
#pragma unroll
        for (int j = 0; j < kKeyBlocks; ++j) {
          if (32 * j + 8 * q < d) keys[i][below][j] = words(key, 32 * j + 8 * q);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (16 * i + 2 * q + n % 2 + 8 * (n / 2) != inside) continue;
#pragma unroll
        for (int m = 0; m < kValueBlocks; ++m) {
          if (64 * m + 8 * g < d) values[i][n][m] = words(value, 64 * m + 8 * g);
        }
      }
    }
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_ONE_CUH
