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

struct TableReader {
  const char* codes;
  int64_t rows, row_bytes;
  uint64_t policy;
  int chunks;  // of 16 bytes of a row
  bool whole;  // rows are whole chunks

  __device__ __forceinline__ explicit TableReader(const nq_cuda_table& table)
      : codes(static_cast<const char*>(table.codes)),
        rows(table.rows),
        row_bytes((table.columns * table.bits + 7) / 8),
        policy(read_once_policy()),
        chunks(static_cast<int>((row_bytes + 15) / 16)),
        whole(row_bytes % 16 == 0) {}

  // Starts the copy of rows first to first + 15, stretch number `stretch`.
  __device__ __forceinline__ void read(int64_t first, int stretch, uint32_t to, int lane) const {
    const int place = lane % 8;
    const int chunk = min(stretch * 8 + place, chunks - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int inside = i * 4 + lane / 8;
      const int64_t row = min(first + inside, rows - 1);
      const char* from = codes + row * row_bytes + chunk * 16;
      const uint32_t at = to + inside * 128 + ((place ^ (inside % 8)) << 4);
      if (whole) {
        copy_async_16(at, from, policy);
      } else {
        store_shared(at, gather(from, static_cast<int>(row_bytes) - chunk * 16));
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

// Scales of the table's rows.
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
  __device__ __forceinline__ float operator()(int64_t row, int block) const {
    const int group = min(block / group_blocks, groups - 1);
    return load_value(scales, min(row, rows - 1) * groups + group, type);
  }
};

__device__ __forceinline__ float soften(float value, float cap) {
  return cap > 0.0f ? cap * tanhf(value / cap) : value;
}

}  // namespace tables
}  // namespace nq_cuda

#endif  // NQ_CUDA_TABLES_STRETCH_CUH
