// SPDX-License-Identifier: Apache-2.0
//
// From sums to results: scales, bias and residual in float32, turned round in shared memory so that
// every thread writes 16 neighbouring bytes.

#ifndef NQ_CUDA_WGMMA_FINISH_CUH
#define NQ_CUDA_WGMMA_FINISH_CUH

#include "cuda/wgmma/instructions.cuh"
#include "cuda/wgmma/types.cuh"

namespace nq_cuda {

template <int N, bool FIRST, bool BYTES>
struct Finisher {
  using Shape = WgmmaShape<N, BYTES>;
  using Value = typename Sum<BYTES>::Type;
  static constexpr int kFactors = (N + 31) / 32;

  const WgmmaStage& stage;
  uint32_t base;
  int warp, lane;

  // Row of the sign matrix of sums 4 j, 4 j + 1 (high = 0) or 4 j + 2, 4 j + 3 (high = 1).
  __device__ __forceinline__ int row_of(const WgmmaTile& tile, int high) const {
    const int inside =
        FIRST ? ((warp & 1) * 8 + lane / 4) * 16 + (warp >> 1) : warp * 16 + lane / 4;
    return tile.m * kTileM + inside + 8 * high;
  }

  // What a lane needs to finish a tile: its rows' scale and bias, and the factor of every 32nd row
  // of x, which the lanes tell each other.
  struct Terms {
    float scale[2], bias[2], factor[kFactors];
  };

  __device__ __forceinline__ Terms load_terms(const WgmmaTile& tile) const {
    const WgmmaPart& part = stage.parts[tile.part];
    Terms terms;
    const float range = *part.range;
#pragma unroll
    for (int i = 0; i < kFactors; ++i) {
      const int n = tile.n * N + i * 32 + lane;
      terms.factor[i] = n < stage.rows ? part.factor[n] : 0.0f;
    }
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(tile, high);
      const bool inside = row < part.rows;
      terms.scale[high] = inside ? 1.0f : 0.0f;
      terms.bias[high] = 0.0f;
      if (inside && part.scale != nullptr) {
        terms.scale[high] = load_value(part.scale, row, stage.scale_type);
      }
      if (inside && part.bias != nullptr) {
        terms.bias[high] = load_value(part.bias, row, stage.scale_type);
      }
    }
#pragma unroll
    for (int high = 0; high < 2; ++high) terms.scale[high] *= range;
    return terms;
  }

  // Scales a half of the sums and writes them through shared memory, 16 bytes at a time.
  template <int HALF>
  __device__ __forceinline__ void finish(const WgmmaTile& tile, const Terms& terms,
                                         const Value (&sums)[N / 2]) const {
    const WgmmaPart& part = stage.parts[tile.part];
    const bool wide = !FIRST && stage.y_type == NQ_FLOAT32;
    const nq_type type = !FIRST && stage.y_type == NQ_BFLOAT16 ? NQ_BFLOAT16 : NQ_FLOAT16;
    const bool add = !FIRST && !wide && part.residual != nullptr;
    const uint32_t staging = base + Shape::kStagingAt + warp / 4 * (N * 128);
    const int thread = warp % 4 * 32 + lane, group = warp / 4, line0 = HALF * (N / 2);
    if (add) {
#pragma unroll 1
      for (int index = thread; index < N * 4; index += 128) {
        const int line = line0 + index / 8, chunk = index % 8, n = tile.n * N + line;
        const int row = tile.m * kTileM + group * 64 + chunk * 8;
        if (n < stage.rows) {
          store_shared(staging + line * 128 + ((chunk ^ line % 8) << 4),
                       load_row(part.residual, n * part.stride + row, part.rows - row));
        }
      }
      named_barrier(1 + group, 128);
    }
    const int chunk = FIRST ? warp % 4 + (lane / 8 % 2) * 4 : warp % 4 * 2 + lane / 8 % 2;
    const uint32_t place = staging + lane % 8 * 128 + ((chunk ^ lane % 8) << 4);
#pragma unroll
    for (int j = HALF * N / 16; j < (HALF + 1) * N / 16; ++j) {
      const int lane0 = j % 4 * 8 + lane % 4 * 2;
      const float even = __shfl_sync(0xffffffffu, terms.factor[j / 4], lane0);
      const float odd = __shfl_sync(0xffffffffu, terms.factor[j / 4], lane0 + 1);
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = static_cast<float>(sums[4 * j + i]) * (i & 1 ? odd : even) * terms.scale[i / 2] +
               terms.bias[i / 2];
      }
      if (wide) {
        // [line][64 rows], pieces of 32 bytes turned by the line so that banks differ.
        const int line = 8 * j + lane % 4 * 2 - line0, row = warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_shared(staging + (line + i % 2) * 256 + (((row + i / 2 * 8) * 4) ^ (lane % 4 << 5)),
                       __float_as_uint(v[i]));
        }
      } else {
        if (add) add_pairs(place + j * 1024, type, v);
        store_transposed(place + j * 1024, pack_pair(v[0], v[1], type),
                         pack_pair(v[2], v[3], type));
      }
    }
    named_barrier(1 + group, 128);
    if (wide) {
#pragma unroll 1
      for (int index = thread; index < N * 8; index += 128) {
        const int line = index / 16, quad = index % 16, n = tile.n * N + line0 + line;
        const int row = tile.m * kTileM + group * 64 + quad * 4;
        if (n < stage.rows) {
          store_floats(part, n * part.stride + row, part.rows - row,
                       load_shared_16(staging + line * 256 + ((quad * 16) ^ (line / 2 % 4 << 5))));
        }
      }
    } else {
#pragma unroll 2
      for (int index = thread; index < N * 4; index += 128) {
        const int line = line0 + index / 8, piece = index % 8, n = tile.n * N + line;
        if (n >= stage.rows) break;
        const uint4 value = load_shared_16(staging + line * 128 + ((piece ^ line % 8) << 4));
        if (FIRST) {
          store_panel(part, tile, n, piece, value);
        } else {
          const int row = tile.m * kTileM + group * 64 + piece * 8;
          store_row(part.y, n * part.stride + row, part.rows - row, value);
        }
      }
    }
    named_barrier(1 + group, 128);  // before other results come
  }

  // Adds what lies where store_transposed will put the sums.
  static __device__ __forceinline__ void add_pairs(uint32_t shared, nq_type type, float (&v)[4]) {
    uint32_t pairs[2];
    load_transposed(shared, &pairs[0], &pairs[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float low, high;
      unpack_pair(pairs[i], type, &low, &high);
      v[2 * i] += low;
      v[2 * i + 1] += high;
    }
  }

  // Up to `count` of eight 16-bit values.
  static __device__ __forceinline__ uint4 load_row(const void* from, int64_t at, int count) {
    const uint16_t* source = static_cast<const uint16_t*>(from) + at;
    if (count >= 8) return *reinterpret_cast<const uint4*>(source);
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) words[i / 2] |= static_cast<uint32_t>(source[i]) << (i % 2 * 16);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

  static __device__ __forceinline__ void store_row(void* to, int64_t at, int count,
                                                   const uint4& value) {
    uint16_t* target = static_cast<uint16_t*>(to) + at;
    if (count >= 8) {
      *reinterpret_cast<uint4*>(target) = value;
      return;
    }
    const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) target[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }

  // Four floats of y, with what is added to them.
  static __device__ __forceinline__ void store_floats(const WgmmaPart& part, int64_t at, int count,
                                                      const uint4& value) {
    const uint32_t bits[4] = {value.x, value.y, value.z, value.w};
    const float* rest = static_cast<const float*>(part.residual);
    float* target = static_cast<float*>(part.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) break;
      target[at + i] = __uint_as_float(bits[i]) + (rest == nullptr ? 0.0f : rest[at + i]);
    }
  }

  __device__ __forceinline__ void store_panel(const WgmmaPart& part, const WgmmaTile& tile, int n,
                                              int piece, const uint4& value) const {
    const int group = warp / 4;
    const int64_t block = tile.m * 4 + group / 2 + piece / 4 * 2;
    char* line = static_cast<char*>(part.y) + (block * stage.groups + n / 8) * 1024 + n % 8 * 128;
    const int place = group % 2 * 4 + piece % 4;
    *reinterpret_cast<uint4*>(line + ((place ^ n % 8) << 4)) = value;
  }
};

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_FINISH_CUH
