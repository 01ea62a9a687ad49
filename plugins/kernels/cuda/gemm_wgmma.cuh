// SPDX-License-Identifier: Apache-2.0
//
// One stage of the warpgroup product: (signs, 256 rows a tile) x (activation panel, N rows a tile).
//
// Four consumer warpgroups own 64 rows of signs each. Signs become +-1 in registers, as operand A
// of wgmma; the panel (prepare.h) is operand B in shared memory. One producer warp streams tiles of
// signs, which are constants and may run ahead of the stream, another one the panel. When there
// are too few tiles for the GPU, the blocks of a cluster share one: each sums over a part of the
// columns, and each adds up and finishes a part of the result, in a fixed order.
//
// Stage 1 (FIRST) writes the next panel, stage 2 writes y. In stage 1 a warp takes rows s and
// s + 8 of eight tiles instead of one tile's 16: they are neighbours in the panel's order.

#ifndef NQ_CUDA_GEMM_WGMMA_CUH
#define NQ_CUDA_GEMM_WGMMA_CUH

#include "prepare.h"
#include "ptx.cuh"
#include "values.cuh"
#include "wgmma_ptx.cuh"

namespace nq_cuda {

constexpr int kGroups = 4;                 // consumer warpgroups
constexpr int kConsumers = kGroups * 128;  // threads
constexpr int kWgmmaThreads = kConsumers + 128;
constexpr int kTileM = kGroups * 64;
constexpr int kSignBytes = kTileM * 32;  // of one step
constexpr int kConsumerRegisters = 112, kProducerRegisters = 32;

struct WgmmaPart {
  const void* signs;     // layout 1
  const void* panel;     // of this stage
  const void* scale;     // by row of signs, or null for 1
  const void* bias;      // or null
  const void* residual;  // or null
  void* y;               // stage 2: y; stage 1: the next panel
  int64_t stride;        // of y
  const float* factor;   // by row of x
  const float* range;    // by which every result is multiplied
  int rows;              // of the sign matrix
  int steps;             // of 256 columns
  int first_tile;        // in the row of M tiles of all parts
};

struct WgmmaStage {
  int rows;     // of x
  int groups;   // of 8 of them
  int m_tiles;  // of all parts
  int n_tiles;
  int count;
  nq_type scale_type;
  nq_type y_type;
  WgmmaPart parts[NQ_CUDA_MAX_GROUP];
};

template <int N, bool BYTES>
struct WgmmaShape {
  static constexpr int kBlocks = BYTES ? 2 : 4;            // panel blocks a step
  static constexpr int kPerStage = N <= 32 ? kBlocks : 1;  // panel blocks a pipeline stage
  static constexpr int kBlockBytes = N * 128;
  static constexpr int kPanelStages = N == 128 ? 8 : (N == 64 ? 12 : (N == 32 ? 6 : 10));
  static constexpr int kSignStages = N == 128 ? 3 : (N == 64 ? 5 : 8);
  static constexpr bool kWarps = N <= 32;          // warp-level multiplies are faster
  static constexpr int kIssue = N == 128 ? 2 : 4;  // multiplies committed together
  static constexpr int kPanelAt = 0;
  static constexpr int kSignsAt = kPanelStages * kPerStage * kBlockBytes;
  static constexpr int kStagingAt = kSignsAt + kSignStages * kSignBytes;
  static constexpr int kBarriersAt = kStagingAt + N * (kWarps ? 1024 : 512);
  static constexpr int kBytes = kBarriersAt + 16 * (kPanelStages + kSignStages) + 1024;
  static_assert(kSignsAt >= N * 1024, "the blocks of a cluster exchange sums in the panel's room");
  static_assert(kBytes <= 227 * 1024, "shared memory of sm_90");
};

// A place in a ring of `SIZE` buffers and how often it went round.
template <int SIZE>
struct Ring {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++index == SIZE) {
      index = 0;
      parity ^= 1u;
    }
  }
};

struct WgmmaTile {
  int part, m, n, begin, end;  // m: tile within the part; steps begin to end
};

__device__ __forceinline__ WgmmaTile wgmma_tile(const WgmmaStage& stage, int index, int rank,
                                                int ranks) {
  // Four columns of tiles at a time: their panels stay in the L2 cache while the signs pass by.
  constexpr int kTogether = 4;
  const int area = kTogether * stage.m_tiles;
  const int column = index / area * kTogether, inside = index % area;
  const int width = min(kTogether, stage.n_tiles - column);
  WgmmaTile tile;
  const int m = inside / width;
  tile.n = column + inside % width;
  tile.part = 0;
  while (tile.part + 1 < stage.count && m >= stage.parts[tile.part + 1].first_tile) ++tile.part;
  tile.m = m - stage.parts[tile.part].first_tile;
  const int steps = stage.parts[tile.part].steps;
  tile.begin = steps * rank / ranks;
  tile.end = steps * (rank + 1) / ranks;
  return tile;
}

// Operand A of the multiply number `k` of a step, from a lane's 16 bytes of a tile: bits k and
// k + 16 of a word as signs of two halves, or bits k, k + 8, k + 16, k + 24 as +-1 bytes.
template <bool BYTES>
__device__ __forceinline__ void unpack_signs(const uint4& words, int k, uint32_t (&a)[4]) {
  const uint32_t from[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (BYTES) {
      a[i] = (from[i] >> k & 0x01010101u) * 0xfeu + 0x01010101u;
    } else {
      a[i] = (from[i] << (15 - k) & 0x80008000u) ^ 0x3c003c00u;
    }
  }
}

template <bool BYTES>
struct Sum {
  using Type = float;
};
template <>
struct Sum<true> {
  using Type = int;
};

template <int N, bool FIRST, bool BYTES>
struct Consumer {
  using Shape = WgmmaShape<N, BYTES>;
  using Value = typename Sum<BYTES>::Type;

  static __device__ __forceinline__ uint32_t to_bits(Value value) {
    if constexpr (BYTES)
      return static_cast<uint32_t>(value);
    else
      return __float_as_uint(value);
  }
  static __device__ __forceinline__ Value from_bits(uint32_t bits) {
    if constexpr (BYTES)
      return static_cast<int>(bits);
    else
      return __uint_as_float(bits);
  }

  const WgmmaStage& stage;
  uint32_t base, full_panel, empty_panel, full_signs, empty_signs;
  int warp, lane;
  Ring<Shape::kPanelStages> panel;
  Ring<Shape::kSignStages> signs;

  // A lane's 16 bytes of signs in the first buffer: of tile `unit`, or of its neighbours' shares.
  __device__ __forceinline__ uint32_t signs_at(int unit) const {
    return base + Shape::kSignsAt +
           (FIRST ? ((unit & 1) * 8 + lane / 4) * 512 + ((unit >> 1) * 4 + lane % 4) * 16
                  : unit * 512 + lane * 16);
  }

  // Sums over the tile's steps.
  __device__ __forceinline__ void accumulate(const WgmmaTile& tile, Value (&sums)[N / 2]) {
    constexpr int kPerBlock = 4 / Shape::kIssue;
    const uint32_t from =
        base + Shape::kSignsAt +
        (FIRST ? ((warp & 1) * 8 + lane / 4) * 512 + ((warp >> 1) * 4 + lane % 4) * 16
               : warp * 512 + lane * 16);
    int last = -1;  // the panel stage that the multiplies in flight read
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sums[i] = 0;
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(full_signs + signs.index * 8, signs.parity);
      const uint4 words = shared_load(from + signs.index * kSignBytes);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_signs + signs.index * 8);
      signs.next();
#pragma unroll
      for (int block = 0; block < Shape::kBlocks; ++block) {
        const int inside = block % Shape::kPerStage;
        uint64_t operand = 0;
#pragma unroll
        for (int part = 0; part < kPerBlock; ++part) {
          uint32_t a[Shape::kIssue][4];
#pragma unroll
          for (int k = 0; k < Shape::kIssue; ++k) {
            unpack_signs<BYTES>(words, block * 4 + part * Shape::kIssue + k, a[k]);
          }
          if (part == 0) {
            if (inside == 0) barrier_wait(full_panel + panel.index * 8, panel.parity);
            operand =
                swizzled_operand(base + Shape::kPanelAt +
                                 (panel.index * Shape::kPerStage + inside) * Shape::kBlockBytes);
          }
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < Shape::kIssue; ++k) {
            wgmma(sums, a[k], operand + (part * Shape::kIssue + k) * 2);
          }
          wgmma_commit();
          wgmma_wait<1>();
          if (part == 0 && inside == 0) {
            if (last >= 0 && lane == 0) barrier_arrive(empty_panel + last * 8);
            last = panel.index;
          }
        }
        if (inside == Shape::kPerStage - 1) panel.next();
      }
    }
    wgmma_wait<0>();
    if (last >= 0 && lane == 0) barrier_arrive(empty_panel + last * 8);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if constexpr (BYTES) {
        asm volatile("" : "+r"(sums[i])::"memory");
      } else {
        asm volatile("" : "+f"(sums[i])::"memory");
      }
    }
  }

  // The same with warp-level multiplies. A warpgroup's multiply reads its registers for 32 cycles
  // however few rows of x there are; these don't. Warps `warp` and `warp ^ 8` work on each other's
  // 16 rows as well, each over one half of every step: an operand from shared memory serves twice.
  __device__ __forceinline__ void accumulate_in_warps(const WgmmaTile& tile, Value (&sums)[N / 2]) {
    constexpr int kMultiplies = Shape::kBlocks * 2;  // of a half step
    const int half = warp / 8, column = lane / 8 % 2, line = lane / 16 * 8 + lane % 8;
    const uint32_t from[2] = {signs_at(warp % 8), signs_at(warp % 8 + 8)};
    Value parts[2][N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) parts[0][i] = parts[1][i] = 0;
#pragma unroll 1
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(full_signs + signs.index * 8, signs.parity);
      uint4 words[2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        words[t] = shared_load(from[t] + signs.index * kSignBytes);
        const int shift = half * kMultiplies;
        words[t].x >>= shift, words[t].y >>= shift, words[t].z >>= shift, words[t].w >>= shift;
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_signs + signs.index * 8);
      signs.next();
      barrier_wait(full_panel + panel.index * 8, panel.parity);
      const uint32_t rows =
          base + Shape::kPanelAt +
          (panel.index * Shape::kPerStage + half * (Shape::kBlocks / 2)) * Shape::kBlockBytes +
          line * 128;
#pragma unroll
      for (int k = 0; k < kMultiplies; ++k) {
        uint32_t a[2][4];
        unpack_signs<BYTES>(words[0], k, a[0]);
        unpack_signs<BYTES>(words[1], k, a[1]);
#pragma unroll
        for (int n = 0; n < N / 16; ++n) {
          const uint4 b = load_matrices(rows + k / 4 * Shape::kBlockBytes + n * 2048 +
                                        (((k % 4 * 2 + column) ^ (lane % 8)) << 4));
#pragma unroll
          for (int t = 0; t < 2; ++t) {
            multiply(&parts[t][8 * n], a[t], b.x, b.y);
            multiply(&parts[t][8 * n + 4], a[t], b.z, b.w);
          }
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(empty_panel + panel.index * 8);
      panel.next();
    }
    const uint32_t staging = base + Shape::kStagingAt;
    named_barrier(5, kConsumers);  // nobody reads the last tile's results any more
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      uint32_t bits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        bits[i] = to_bits(half ? parts[0][4 * j + i] : parts[1][4 * j + i]);
      shared_store(staging + (j * kConsumers + warp * 32 + lane) * 16,
                   make_uint4(bits[0], bits[1], bits[2], bits[3]));
    }
    named_barrier(5, kConsumers);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const uint4 other = shared_load(staging + (j * kConsumers + (warp ^ 8) * 32 + lane) * 16);
      const uint32_t bits[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * j + i;
        // The first half of the columns comes first, in either warp.
        const Value mine = half ? parts[1][at] : parts[0][at];
        sums[at] = half ? from_bits(bits[i]) + mine : mine + from_bits(bits[i]);
      }
    }
    named_barrier(5, kConsumers);
  }

  __device__ __forceinline__ uint32_t exchange(int block) const {
    return base + Shape::kPanelAt + (block * kConsumers + warp * 32 + lane) * 16;
  }

  // Half `half` of this warpgroup's columns belongs to one block of the cluster.
  __device__ __forceinline__ bool owns(int half, int rank, int ranks) const {
    return ((warp / 4) * 2 + half) * ranks / (2 * kGroups) == rank;
  }

  __device__ __forceinline__ void share(const Value (&sums)[N / 2]) const {
    named_barrier(5, kConsumers);  // nobody reads the panel any more
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      shared_store(exchange(j), make_uint4(to_bits(sums[4 * j]), to_bits(sums[4 * j + 1]),
                                           to_bits(sums[4 * j + 2]), to_bits(sums[4 * j + 3])));
    }
  }

  template <int HALF>
  __device__ __forceinline__ void gather(Value (&sums)[N / 2], int ranks) const {
#pragma unroll
    for (int j = HALF * N / 16; j < (HALF + 1) * N / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[4 * j + i] = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const uint4 other = cluster_load(exchange(j), rank);
        const uint32_t bits[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[4 * j + i] += from_bits(bits[i]);
      }
    }
  }

  // Row of the sign matrix of sums 4 j, 4 j + 1 (high = 0) or 4 j + 2, 4 j + 3 (high = 1).
  __device__ __forceinline__ int row_of(const WgmmaTile& tile, int high) const {
    const int inside =
        FIRST ? ((warp & 1) * 8 + lane / 4) * 16 + (warp >> 1) : warp * 16 + lane / 4;
    return tile.m * kTileM + inside + 8 * high;
  }

  // Scales a half of the sums and writes them through shared memory, 16 bytes at a time.
  template <int HALF>
  __device__ __forceinline__ void finish(const WgmmaTile& tile, const Value (&sums)[N / 2]) const {
    const WgmmaPart& part = stage.parts[tile.part];
    const bool wide = !FIRST && stage.y_type == NQ_FLOAT32;
    const bool bfloat = !FIRST && stage.y_type == NQ_BFLOAT16;
    const bool add = !FIRST && !wide && part.residual != nullptr;
    const uint32_t staging = base + Shape::kStagingAt + warp / 4 * (N * 128);
    const int thread = warp % 4 * 32 + lane, group = warp / 4, line0 = HALF * (N / 2);
    if (add) {
#pragma unroll 1
      for (int index = thread; index < N * 4; index += 128) {
        const int line = line0 + index / 8, chunk = index % 8, n = tile.n * N + line;
        const int row = tile.m * kTileM + group * 64 + chunk * 8;
        if (n < stage.rows) {
          shared_store(staging + line * 128 + ((chunk ^ line % 8) << 4),
                       load_row(part.residual, n * part.stride + row, part.rows - row));
        }
      }
      named_barrier(1 + group, 128);
    }
    const float range = *part.range;
    float scale[2], bias[2];
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(tile, high);
      const bool inside = row < part.rows;
      scale[high] = inside ? range : 0.0f;
      bias[high] = 0.0f;
      if (inside && part.scale != nullptr) {
        scale[high] *= load_value(part.scale, row, stage.scale_type);
      }
      if (inside && part.bias != nullptr) {
        bias[high] = load_value(part.bias, row, stage.scale_type);
      }
    }
    const int chunk = FIRST ? warp % 4 + (lane / 8 % 2) * 4 : warp % 4 * 2 + lane / 8 % 2;
    const uint32_t place = staging + lane % 8 * 128 + ((chunk ^ lane % 8) << 4);
    const float* factors = part.factor + tile.n * N + lane % 4 * 2;
#pragma unroll
    for (int j = HALF * N / 16; j < (HALF + 1) * N / 16; ++j) {
      // Rows past the last one read what lies behind the factors and are not written.
      const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * j);
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = static_cast<float>(sums[4 * j + i]) * (i & 1 ? factor.y : factor.x) * scale[i / 2] +
               bias[i / 2];
      }
      if (wide) {
        // [line][64 rows], pieces of 32 bytes turned by the line so that banks differ.
        const int line = 8 * j + lane % 4 * 2 - line0, row = warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          shared_store(staging + (line + i % 2) * 256 + (((row + i / 2 * 8) * 4) ^ (lane % 4 << 5)),
                       __float_as_uint(v[i]));
        }
      } else {
        if (add) add_pairs(place + j * 1024, bfloat, v);
        store_transposed(place + j * 1024, pack(v[0], v[1], bfloat), pack(v[2], v[3], bfloat));
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
                       shared_load(staging + line * 256 + ((quad * 16) ^ (line / 2 % 4 << 5))));
        }
      }
    } else {
#pragma unroll 2
      for (int index = thread; index < N * 4; index += 128) {
        const int line = line0 + index / 8, piece = index % 8, n = tile.n * N + line;
        if (n >= stage.rows) break;
        const uint4 value = shared_load(staging + line * 128 + ((piece ^ line % 8) << 4));
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

  static __device__ __forceinline__ uint32_t pack(float low, float high, bool bfloat) {
    if (bfloat) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
      return *reinterpret_cast<const uint32_t*>(&pair);
    }
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }

  // Adds what lies where store_transposed will put the sums.
  static __device__ __forceinline__ void add_pairs(uint32_t shared, bool bfloat, float (&v)[4]) {
    uint32_t pairs[2];
    load_transposed(shared, &pairs[0], &pairs[1]);
    const nq_type type = bfloat ? NQ_BFLOAT16 : NQ_FLOAT16;
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

template <int N, bool BYTES>
__device__ __forceinline__ void produce_signs(const WgmmaStage& stage, uint32_t base, uint32_t full,
                                              uint32_t empty, int tiles, int rank, int ranks) {
  using Shape = WgmmaShape<N, BYTES>;
  const int lane = threadIdx.x % 32;
  Ring<Shape::kSignStages> ring;
  for (int index = blockIdx.x / ranks; index < tiles; index += gridDim.x / ranks) {
    const WgmmaTile tile = wgmma_tile(stage, index, rank, ranks);
    const WgmmaPart& part = stage.parts[tile.part];
    const int present = min(16, (part.rows + 15) / 16 - tile.m * 16);
    const char* from =
        static_cast<const char*>(part.signs) + static_cast<int64_t>(tile.m * 16) * part.steps * 512;
    const int64_t pitch = static_cast<int64_t>(part.steps) * 512;
#pragma unroll 1
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(empty + ring.index * 8, ring.parity ^ 1u);
      if (lane == 0) barrier_expect(full + ring.index * 8, present * 512);
      __syncwarp();
      if (lane < present) {
        bulk_copy(base + Shape::kSignsAt + ring.index * kSignBytes + lane * 512,
                  from + lane * pitch + static_cast<int64_t>(step) * 512, 512,
                  full + ring.index * 8);
      }
      ring.next();
    }
  }
}

template <int N, bool BYTES>
__device__ __forceinline__ void produce_panel(const WgmmaStage& stage, uint32_t base, uint32_t full,
                                              uint32_t empty, int tiles, int rank, int ranks) {
  using Shape = WgmmaShape<N, BYTES>;
  Ring<Shape::kPanelStages> ring;
  for (int index = blockIdx.x / ranks; index < tiles; index += gridDim.x / ranks) {
    const WgmmaTile tile = wgmma_tile(stage, index, rank, ranks);
    const uint32_t bytes = min(N / 8, stage.groups - tile.n * (N / 8)) * 1024;
    const char* from = static_cast<const char*>(stage.parts[tile.part].panel) + tile.n * (N * 128);
#pragma unroll 1
    for (int block = tile.begin * Shape::kBlocks; block < tile.end * Shape::kBlocks;
         block += Shape::kPerStage) {
      barrier_wait(empty + ring.index * 8, ring.parity ^ 1u);
      barrier_expect(full + ring.index * 8, bytes * Shape::kPerStage);
#pragma unroll
      for (int i = 0; i < Shape::kPerStage; ++i) {
        bulk_copy(base + Shape::kPanelAt + (ring.index * Shape::kPerStage + i) * Shape::kBlockBytes,
                  from + static_cast<int64_t>(block + i) * stage.groups * 1024, bytes,
                  full + ring.index * 8);
      }
      ring.next();
    }
  }
}

template <int N, bool FIRST, bool BYTES>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    gemm_wgmma_stage(const __grid_constant__ WgmmaStage stage) {
  using Shape = WgmmaShape<N, BYTES>;
  extern __shared__ char shared[];
  const uint32_t base = (shared_address(shared) + 1023u) & ~1023u;
  const uint32_t full_panel = base + Shape::kBarriersAt;
  const uint32_t empty_panel = full_panel + 8 * Shape::kPanelStages;
  const uint32_t full_signs = empty_panel + 8 * Shape::kPanelStages;
  const uint32_t empty_signs = full_signs + 8 * Shape::kSignStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int ranks = cluster_size(), rank = rank_in_cluster();
  const int tiles = stage.m_tiles * stage.n_tiles;
  release_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kPanelStages; ++i) {
      barrier_init(full_panel + 8 * i, 1);
      barrier_init(empty_panel + 8 * i, kGroups * 4);
    }
    for (int i = 0; i < Shape::kSignStages; ++i) {
      barrier_init(full_signs + 8 * i, 1);
      barrier_init(empty_signs + 8 * i, kGroups * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warp >= kGroups * 4) {
    give_registers<kProducerRegisters>();
    if (warp == kGroups * 4) {
      produce_signs<N, BYTES>(stage, base, full_signs, empty_signs, tiles, rank, ranks);
    } else if (warp == kGroups * 4 + 1 && lane == 0) {
      wait_for_predecessors();
      global_to_async_fence();
      produce_panel<N, BYTES>(stage, base, full_panel, empty_panel, tiles, rank, ranks);
    }
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<N, FIRST, BYTES> consumer{stage,       base, full_panel, empty_panel, full_signs,
                                       empty_signs, warp, lane,       {},          {}};
    typename Sum<BYTES>::Type sums[N / 2];
    for (int index = blockIdx.x / ranks; index < tiles; index += gridDim.x / ranks) {
      const WgmmaTile tile = wgmma_tile(stage, index, rank, ranks);
      if constexpr (Shape::kWarps) {
        consumer.accumulate_in_warps(tile, sums);
      } else {
        consumer.accumulate(tile, sums);
      }
      wait_for_predecessors();
      if (ranks > 1) {
        consumer.share(sums);
        cluster_barrier();
        if (consumer.owns(0, rank, ranks)) consumer.template gather<0>(sums, ranks);
        if (consumer.owns(1, rank, ranks)) consumer.template gather<1>(sums, ranks);
      }
      if (consumer.owns(0, rank, ranks)) consumer.template finish<0>(tile, sums);
      if (consumer.owns(1, rank, ranks)) consumer.template finish<1>(tile, sums);
      if (ranks > 1) cluster_barrier();  // others read this block's sums
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMM_WGMMA_CUH
