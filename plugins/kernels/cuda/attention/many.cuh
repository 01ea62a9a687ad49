// SPDX-License-Identifier: Apache-2.0
//
// Attention of many tokens a sequence over a cache that holds them, as FlashAttention-2 (Dao 2023)
// orders it: a block has a tile of query rows and walks over tiles of keys with a running softmax.
//
// The rows of a key/value head are its query heads of every new token, token by token, so that
// grouped heads read a key tile once and the masked triangle at the end is short. The next tile of
// keys and values comes by asynchronous copies while this one is used. Few rows over a long cache
// leave multiprocessors idle, so the keys are then cut into splits, whose results the last block
// adds up in one order.

#ifndef NQ_CUDA_ATTENTION_MANY_CUH
#define NQ_CUDA_ATTENTION_MANY_CUH

#include "cuda/attention/run.h"
#include "cuda/attention/score.cuh"

namespace nq_cuda {

constexpr int kManyThreads = 128;
constexpr int kManyWarps = kManyThreads / 32;
constexpr int kSplitTokens = 1024;  // a split has at least so many; adding up costs more for fewer

// Sizes of a block: C's products, room for D channels, T tiles of 16 rows a warp, N keys at once.
template <Core C, int D, int T, int N>
struct Sizes {
  static constexpr int kRows = kManyWarps * 16 * T;
  static constexpr int kWidth = D + 8;  // of a row in shared memory: eight rows in different banks
  static constexpr bool kHoldsQueries = D <= 64;  // in registers
  // Two stages of keys and values follow the queries, then, of codes, their scales and the rows',
  // and the slots of two tiles by 16 tokens. In bytes:
  static constexpr int kTile = N * kWidth * 2;
  static constexpr int kKeys = kRows * kWidth * 2;
  static constexpr int kValues = kKeys + 2 * kTile;
  static constexpr int kScales = kValues + 2 * kTile;
  static constexpr int kSlots = kScales + (C == Core::kCodes ? 4 * (4 * N + kRows) : 0);
  // Blocks of a multiprocessor that leave registers for everything above.
  static constexpr int kBlocks = T == 1 ? (D <= 64 && C != Core::kCodes ? 4 : D <= 96 ? 3 : 2) : 2;
  static constexpr int kBytes = kSlots + 4 * 2 * (N / 16);
};

// What a block has: its sequence, query rows and the keys that they see.
struct Region {
  NewTokens tokens;
  int sequence, kv, group, first_row, last_row;  // rows count from the sequence's first
  int first_place, last_place;                   // of those rows
  int first_key, begin, end;                     // keys [begin, end) are walked over
  int split, splits;
  bool any;

  __device__ Region(const nq_cuda_attention& a, int rows, int keys, int cuts)
      : tokens(a, blockIdx.z / cuts),
        sequence(blockIdx.z / cuts),
        kv(blockIdx.x),
        group(a.heads / a.kv_heads),
        split(blockIdx.z % cuts),
        splits(0),
        any(false) {
    // The last rows see the most keys: they begin first.
    first_row = (gridDim.y - 1 - blockIdx.y) * rows;
    if (first_row >= tokens.count * group) return;
    last_row = min(first_row + rows, tokens.count * group) - 1;
    first_place = tokens.position + first_row / group;
    last_place = tokens.position + last_row / group;
    first_key = a.window == 0 ? 0 : max(0, first_place - a.window + 1);
    const int aligned_key = first_key / keys * keys;
    const int tiles = (last_place - aligned_key) / keys + 1;
    const int share = max((tiles + cuts - 1) / cuts, kSplitTokens / keys);
    splits = (tiles + share - 1) / share;
    begin = aligned_key + split * share * keys;
    end = min(begin + share * keys, last_place + 1);
    any = split < splits;
  }

  __device__ int place_of(int row) const { return tokens.position + row / group; }

  // Where a row of queries or results begins.
  __device__ int64_t offset(int row, int64_t stride, int head_dim) const {
    return (tokens.first_row + row / group) * stride +
           static_cast<int64_t>(kv * group + row % group) * head_dim;
  }
};

// Keys or values of a tile on their way into shared memory. A thread has one place in rows of
// every so many, so that little of an address is left to compute for each of its pieces.
template <Core C, int D, int N>
struct Fetch {
  static constexpr int kChannels = C == Core::kCodes ? 16 : 8;  // of a 16-byte piece
  static constexpr int kAcross = D / kChannels;
  // Threads that take part: as many rows as 16 is a multiple of.
  static constexpr int kRowsAtOnce = kManyThreads / kAcross >= 16  ? 16
                                     : kManyThreads / kAcross >= 8 ? 8
                                                                   : 4;
  static constexpr int kPieces = N / kRowsAtOnce;
  static constexpr bool kAll = kRowsAtOnce * kAcross == kManyThreads;
  uint4 held[C == Core::kCodes ? kPieces : 1];
  float scale;
  int row, channel;  // of the first piece
  bool wanted;       // whether this thread's channels exist

  __device__ explicit Fetch(int d) : scale(1.0f) {
    row = threadIdx.x / kAcross;
    channel = threadIdx.x % kAcross * kChannels;
    wanted = channel < d;
  }

  // Tokens outside [first, last] become zeros.
  __device__ __forceinline__ void begin(const void* from, const void* scales, const int* slots,
                                        uint32_t to, int tile, int first, int last, int d) {
    int groups[N / 16];
#pragma unroll
    for (int i = 0; i < N / 16; ++i) groups[i] = slots[i];
    const bool whole = tile >= first && tile + N - 1 <= last;
    if (kAll || row < kRowsAtOnce) {
      constexpr int kBytes = C == Core::kCodes ? 1 : 2;  // of a channel
      const char* const mine =
          static_cast<const char*>(from) + (static_cast<int64_t>(row) * d + channel) * kBytes;
      const uint32_t here = to + (row * (D + 8) + channel) * 2;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int below = i * kRowsAtOnce, token = tile + below + row;
        const bool present = wanted && (whole || (token >= first && token <= last));
        const int64_t slot = groups[below / 16] + below % 16;
        const char* const at = mine + slot * (d * kBytes);
        if constexpr (C == Core::kCodes) {
          held[i] = make_uint4(0, 0, 0, 0);
          if (present) held[i] = *reinterpret_cast<const uint4*>(at);
        } else {
          copy_async_or_zero(here + below * (D + 8) * 2, present ? at : from, present);
        }
      }
    }
    if constexpr (C == Core::kCodes) {
      const int token = tile + static_cast<int>(threadIdx.x);
      scale = 1.0f;
      if (threadIdx.x < N && token >= first && token <= last) {
        scale = load_value(scales, slots[threadIdx.x / 16] + threadIdx.x % 16, NQ_FLOAT16);
      }
    }
  }

  // Codes arrive in registers; here they go where copies would have gone.
  __device__ __forceinline__ void end(uint32_t to, float* scales) {
    if constexpr (C == Core::kCodes) {
      if (kAll || row < kRowsAtOnce) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          const uint32_t at = to + ((i * kRowsAtOnce + row) * (D + 8) + channel) * 2;
          store_shared(at, halves_of(make_uint2(held[i].x, held[i].y)));
          store_shared(at + 16, halves_of(make_uint2(held[i].z, held[i].w)));
        }
      }
      if (threadIdx.x < N) scales[threadIdx.x] = scale;
    }
  }
};

// A warp's rows: T tiles of 16 with the running softmax of each row.
template <Core C, int D, int T, int N>
struct Rows {
  using S = Sizes<C, D, T, N>;
  static constexpr nq_type kType = kProduct<C>;
  float sums[T][D / 8][4] = {};
  float best[T][2], totals[T][2];
  int places[T][2];

  __device__ Rows(const Region& region, int first_row, int lane) {
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        // Rows past the last see what it sees; they are not stored.
        const int row = first_row + 16 * t + 8 * below + lane / 4;
        places[t][below] = region.place_of(min(row, region.last_row));
        best[t][below] = kNothing;
        totals[t][below] = 0.0f;
      }
    }
  }

  // scores = queries times keys
  __device__ __forceinline__ void multiply_keys(
      float (&scores)[T][N / 8][4],
      const uint32_t (&held)[S::kHoldsQueries ? T : 1][S::kHoldsQueries ? D / 16 : 1][4],
      uint32_t queries, uint32_t keys, int lane) const {
    const uint32_t at = keys + ((lane / 16 * 8 + lane % 8) * S::kWidth + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t loaded[S::kHoldsQueries ? 1 : T][4];
      if constexpr (!S::kHoldsQueries) {
#pragma unroll
        for (int t = 0; t < T; ++t) {
          load_matrices(loaded[t], queries + (16 * t * S::kWidth + 16 * k) * 2);
        }
      }
#pragma unroll
      for (int n = 0; n < N / 16; ++n) {
        uint32_t columns[4];
        load_matrices(columns, at + (16 * n * S::kWidth + 16 * k) * 2);
#pragma unroll
        for (int t = 0; t < T; ++t) {
          uint32_t rows[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if constexpr (S::kHoldsQueries) {
              rows[i] = held[t][k][i];
            } else {
              rows[i] = loaded[t][i];
            }
          }
          if (k == 0) {
            multiply<kType, true>(scores[t][2 * n], rows, columns[0], columns[1]);
            multiply<kType, true>(scores[t][2 * n + 1], rows, columns[2], columns[3]);
          } else {
            multiply<kType>(scores[t][2 * n], rows, columns[0], columns[1]);
            multiply<kType>(scores[t][2 * n + 1], rows, columns[2], columns[3]);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void mask(float (&scores)[T][N / 8][4], int tile, int window,
                                       int lane) const {
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int back = places[t][e / 2] - (tile + 8 * n + 2 * (lane % 4) + e % 2);
          if (back < 0 || (window != 0 && back >= window)) scores[t][n][e] = kNothing;
        }
      }
    }
  }

  // Scores become weights: 2^(factor score - the row's largest). `scales` are the values' scales
  // that are part of the scores already.
  __device__ __forceinline__ void weigh(float (&scores)[T][N / 8][4], float factor,
                                        const float* scales, int lane) {
    bool rescale = false;
    float factors[T][2];
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        float next = best[t][below];
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
          next = fmaxf(next, fmaxf(scores[t][n][2 * below], scores[t][n][2 * below + 1]));
        }
        next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 1));
        next = fmaxf(next, __shfl_xor_sync(0xffffffffu, next, 2));
        const float shift = next == kNothing ? 0.0f : next * factor;
        factors[t][below] = power_of_two(best[t][below] * factor - shift);
        rescale = rescale || best[t][below] != next;
        best[t][below] = next;
        float total = totals[t][below] * factors[t][below];
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& score = scores[t][n][2 * below + e];
            score = power_of_two(score * factor - shift);
            if constexpr (C == Core::kCodes) {
              total += score * reciprocal(scales[8 * n + 2 * (lane % 4) + e]);
            } else {
              total += score;
            }
          }
        }
        totals[t][below] = total;
      }
    }
    if (!__any_sync(0xffffffffu, rescale)) return;
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[t][n][e] *= factors[t][e / 2];
      }
    }
  }

  // sums += weights times values
  __device__ __forceinline__ void add(const float (&weights)[T][N / 8][4], uint32_t values,
                                      int lane) {
    const uint32_t at = values + (lane % 16 * S::kWidth + lane / 16 * 8) * 2;
#pragma unroll
    for (int k = 0; k < N / 16; ++k) {
      uint32_t rows[T][4];
#pragma unroll
      for (int t = 0; t < T; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &weights[t][2 * k + i / 2][i % 2 * 2];
          rows[t][i] = pack_pair(pair[0], pair[1], kType);
        }
      }
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t columns[4];
        load_transposed(columns, at + (16 * k * S::kWidth + 16 * n) * 2);
#pragma unroll
        for (int t = 0; t < T; ++t) {
          multiply<kType>(sums[t][2 * n], rows[t], columns[0], columns[1]);
          multiply<kType>(sums[t][2 * n + 1], rows[t], columns[2], columns[3]);
        }
      }
    }
  }

  // The totals of whole rows.
  __device__ __forceinline__ void gather_totals() {
#pragma unroll
    for (int t = 0; t < T; ++t) {
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        float& total = totals[t][below];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
      }
    }
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_ATTENTION_MANY_CUH
