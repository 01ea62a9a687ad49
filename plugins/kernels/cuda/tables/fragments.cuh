// SPDX-License-Identifier: Apache-2.0
//
// Operands of the head's tensor-core products (PTX ISA: mma.m16n8k16 of 16-bit floats).
//
// Products take 32 columns, a block, at a time, in whatever order the codes have: ldmatrix gives
// lane (g, q) = (l / 4, l mod 4) word q of 16 bytes of table rows g and g + 8, which are two, four
// or eight neighbouring columns. x is dealt out in the same order: lane (g, q) has 16 bytes of
// a block of x row g, two words for each of the block's two products:
//
//   16 bits   word i: columns 8 i + 2 q and the next
//    8 bits   word i: columns 16 (i / 2) + 4 q + 2 (i mod 2) and the next
//    4 bits   word i: columns 8 q + i and 8 q + i + 4
//
// Codes become float16, which holds them exactly; x is in float16 with a power of two as factor of
// its row, or of the table's type for tables of 16 bits.

#ifndef NQ_CUDA_TABLES_FRAGMENTS_CUH
#define NQ_CUDA_TABLES_FRAGMENTS_CUH

#include "cuda/attention/instructions.cuh"
#include "cuda/tables/norm.cuh"

namespace nq_cuda {
namespace tables {

constexpr int kBlockColumns = 32;
constexpr int kRowBytes = 64;  // of x in a block

// A table is read in stretches, 128 bytes of each of 16 rows.
constexpr int kStretchRows = 16;
constexpr int kStretchBytes = kStretchRows * 128;
template <int BITS>
constexpr int kStretchBlocks = 128 * 8 / BITS / kBlockColumns;

// Codes of four int8: float16 of 1024 + code + 128 by its bits, then exactly less 1152.
__device__ __forceinline__ void unpack_bytes(uint32_t word, uint32_t& low, uint32_t& high) {
  const uint32_t biased = word ^ 0x80808080u;
  low = subtract_halves(__byte_perm(biased, 0x64646464u, 0x4140), 0x64806480u);
  high = subtract_halves(__byte_perm(biased, 0x64646464u, 0x4342), 0x64806480u);
}

// (value & mask) ^ other in one instruction; the compiler makes two of constants.
__device__ __forceinline__ uint32_t mask_and_flip(uint32_t value, uint32_t mask, uint32_t other) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(value), "r"(mask), "r"(other));
  return result;
#else
  return (value & mask) ^ other;
#endif
}

// value / 16 - 72 of two halves.
__device__ __forceinline__ uint32_t sixteenth_less_72(uint32_t value) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;"
      : "=r"(result)
      : "r"(value), "r"(0x2c002c00u), "r"(0xd480d480u));
  return result;
#else
  float low, high;
  unpack_pair(value, NQ_FLOAT16, &low, &high);
  return pack_pair(low / 16.0f - 72.0f, high / 16.0f - 72.0f, NQ_FLOAT16);
#endif
}

// Codes of eight int4, columns i and i + 4 in pair i: float16 of 1024 + code + 8 by its bits (the
// sign bit flipped is the 8), then less 1032; odd pairs lie four bits higher, so 16 times that.
__device__ __forceinline__ void unpack_nibbles(uint32_t word, uint32_t (&pairs)[4]) {
  const uint32_t upper = word >> 8;
  pairs[0] = subtract_halves(mask_and_flip(word, 0x000f000fu, 0x64086408u), 0x64086408u);
  pairs[1] = sixteenth_less_72(mask_and_flip(word, 0x00f000f0u, 0x64806480u));
  pairs[2] = subtract_halves(mask_and_flip(upper, 0x000f000fu, 0x64086408u), 0x64086408u);
  pairs[3] = sixteenth_less_72(mask_and_flip(upper, 0x00f000f0u, 0x64806480u));
}

// Sixteen table rows of a block as operands of its two products.
template <int BITS>
struct Operand {
  uint32_t step[2][4];
  uint32_t words[4];

  // From a stretch in shared memory: rows of 128 bytes, of which chunk c of 16 bytes lies at place
  // c ^ (row mod 8), so that eight rows' chunks are in different banks. Blocks are taken in order:
  // with 4 bits one load serves two of them.
  __device__ __forceinline__ void load(uint32_t stretch, int block, int lane) {
    if constexpr (BITS == 16) {
      matrices(stretch, block * 4, lane, step[0]);
      matrices(stretch, block * 4 + 2, lane, step[1]);
    } else if constexpr (BITS == 8) {
      matrices(stretch, block * 2, lane, words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        unpack_bytes(words[i], step[i / 2][i % 2], step[i / 2][i % 2 + 2]);
      }
    } else {
      if (block % 2 == 0) matrices(stretch, block, lane, words);
      unpack_half(block % 2);
    }
  }

  // The same for blocks in any order.
  __device__ __forceinline__ void load_alone(uint32_t stretch, int block, int lane) {
    if constexpr (BITS == 4) {
      matrices(stretch, block & ~1, lane, words);
      // Both halves' chunks are there; which one is wanted is known at run time only.
      if (block % 2 != 0) words[0] = words[2], words[1] = words[3];
      unpack_half(0);
    } else {
      load(stretch, block, lane);
    }
  }

 private:
  __device__ __forceinline__ void unpack_half(int half) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      uint32_t pairs[4];
      unpack_nibbles(words[half * 2 + below], pairs);
#pragma unroll
      for (int i = 0; i < 4; ++i) step[i / 2][i % 2 * 2 + below] = pairs[i];
    }
  }

  __device__ __forceinline__ static void matrices(uint32_t stretch, int chunk, int lane,
                                                  uint32_t (&to)[4]) {
    const int row = lane % 16;
    load_matrices(to, stretch + row * 128 + (((chunk + lane / 16) ^ (row % 8)) << 4));
  }
};

// Where word `word` (0 to 3) of columns 8 chunk to 8 chunk + 7 of a block lies among the 64 bytes
// of its x row.
template <int BITS>
__device__ __forceinline__ int word_place(int chunk, int word) {
  if (BITS == 16) return word * 16 + chunk * 4;
  if (BITS == 8) return (chunk % 2 * 2 + word / 2) * 16 + (chunk / 2 * 2 + word % 2) * 4;
  return chunk * 16 + word * 4;
}

template <int BITS>
__device__ __forceinline__ uint32_t word_of(const float (&v)[8], int word, nq_type type) {
  return BITS == 4 ? pack_pair(v[word], v[word + 4], type)
                   : pack_pair(v[2 * word], v[2 * word + 1], type);
}

// The power of two that brings values up to `largest`, given by its bits, below 2^14, and its
// reciprocal: float16 then has its full 11 bits for all that matters. Infinity and NaN stay so.
__device__ __forceinline__ float2 range_factor(uint32_t largest) {
  const int exponent = static_cast<int>(largest >> 23) - 126;  // largest < 2^exponent
  const int power = largest == 0 ? 0 : min(max(14 - exponent, -110), 110);
  return make_float2(__int_as_float((127 + power) << 23), __int_as_float((127 - power) << 23));
}

// Deals out a row of x by one warp into `blocks` blocks, zeros after its last column:
// store(block, place among the block's 64 bytes, word) takes each word. Returns what sums must be
// multiplied by.
template <int BITS, typename Store>
__device__ __forceinline__ float deal_row(const Norm& norm, const void* x, int64_t begin,
                                          nq_type type, int blocks, int lane, Store store) {
  const NormedRow row(norm, x, begin, lane);
  float2 factor = make_float2(1.0f, 1.0f);
  if (type == NQ_FLOAT16) {
    uint32_t largest = 0;
    row.each([&](int, float (&v)[8]) {
#pragma unroll
      for (int i = 0; i < 8; ++i) largest = max(largest, __float_as_uint(v[i]) & 0x7fffffffu);
    });
    factor = range_factor(warp_max(largest));
  }
  row.each([&](int column, float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= factor.x;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      store(column / kBlockColumns, word_place<BITS>(column % kBlockColumns / 8, word),
            word_of<BITS>(v, word, type));
    }
  });
  const int eights = (norm.columns + 7) / 8;
  for (int i = eights + lane; i < blocks * (kBlockColumns / 8); i += 32) {
#pragma unroll
    for (int word = 0; word < 4; ++word) store(i / 4, word_place<BITS>(i % 4, word), 0u);
  }
  return factor.y;
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_FRAGMENTS_CUH
