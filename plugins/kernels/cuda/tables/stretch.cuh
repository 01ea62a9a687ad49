// SPDX-License-Identifier: Apache-2.0
//
// Stretches of a table on their way to shared memory, 128 bytes of each of 16 rows, by one warp.
// What lies past the last row or column is taken from the last one: x is 0 there, or the result is
// dropped.

#ifndef NQ_CUDA_TABLES_STRETCH_CUH
#define NQ_CUDA_TABLES_STRETCH_CUH

#include "cuda/ptx.cuh"
#include "cuda/tables/fragments.cuh"

namespace nq_cuda {

// The dynamic shared memory of a block.
__device__ __forceinline__ uint4* dynamic_shared() {
  extern __shared__ uint4 shared[];
  return shared;
}

namespace tables {

// WHOLE says that rows are whole chunks of 16 bytes and that scales have 16 bits, as tables of
// models do. Others are read as well, but slowly.
template <bool WHOLE>
struct TableReader {
  const char* codes;
  int64_t rows;
  uint64_t policy;
  int row_bytes, chunks;  // of 16 bytes of a row
  int lane;

  __device__ __forceinline__ TableReader(const nq_cuda_table& table, int of)
      : codes(static_cast<const char*>(table.codes)),
        rows(table.rows),
        policy(read_once_policy()),
        row_bytes(static_cast<int>((table.columns * table.bits + 7) / 8)),
        chunks((row_bytes + 15) / 16),
        lane(of) {}

  // Starts the copy of rows first to first + 15, stretch number `stretch`.
  __device__ __forceinline__ void read(int64_t first, int stretch, uint32_t to) const {
    const int place = lane % 8, inside = lane / 8;
    const int chunk = min(stretch * 8 + place, chunks - 1);
    // Of the lane's first row; the others are four rows further each, where there are any.
    const int64_t row = min(first + inside, rows - 1);
    const int left = static_cast<int>(min(rows - 1 - row, int64_t{kStretchRows}));
    const char* from = codes + row * row_bytes + chunk * 16;
    const uint32_t at = to + inside * 128;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t slot = at + i * 512 + ((place ^ (inside + i * 4) % 8) << 4);
      const char* here = from + min(i * 4, left) * row_bytes;
      if (WHOLE) {
        copy_async_16(slot, here, policy);
      } else {
        store_shared(slot, gather(here, row_bytes - chunk * 16));
      }
    }
  }

 private:
  // 16 bytes from any address on, of which `valid` exist; the others are 0.
  __device__ __noinline__ static uint4 gather(const char* from, int valid) {
    uint32_t words[4] = {};
    for (int i = 0; i < 16 && i < valid; ++i) {
      words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(from[i])) << (i % 4 * 8);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

// Scales of the table's rows. What is loaded stays as it is until it is used: a conversion would
// wait for it at once, and so would a load of the other width into the same register, even one that
// is switched off.
template <bool WHOLE>
struct ScaleReader {
  const void* scales;
  int64_t rows;
  nq_type type;
  int groups;        // of a row
  int group_blocks;  // blocks of a group

  __device__ __forceinline__ explicit ScaleReader(const nq_cuda_table& table)
      : scales(table.scales), rows(table.rows), type(table.scale_type) {
    const bool one = table.group >= table.columns;
    groups = one ? 1 : static_cast<int>((table.columns + table.group - 1) / table.group);
    group_blocks = one ? NQ_CUDA_TABLE_COLUMNS : static_cast<int>(table.group) / kBlockColumns;
  }

  // Of a block of columns; past the last one, that of the last.
  __device__ __forceinline__ uint32_t load(int64_t row, int block) const {
    // Nearly always a group is a block, and dividing takes twenty instructions.
    const int group = min(group_blocks == 1 ? block : block / group_blocks, groups - 1);
    const int64_t at = min(row, rows - 1) * groups + group;
    if (!WHOLE && type == NQ_FLOAT32) return __ldg(static_cast<const uint32_t*>(scales) + at);
    return __ldg(static_cast<const uint16_t*>(scales) + at);
  }

  __device__ __forceinline__ float value(uint32_t bits) const {
    if (type == NQ_FLOAT16) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
    return __uint_as_float(type == NQ_BFLOAT16 ? bits << 16 : bits);
  }
};

__device__ __forceinline__ float soften(float value, float cap) {
  return cap > 0.0f ? cap * tanhf(value / cap) : value;
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_STRETCH_CUH
