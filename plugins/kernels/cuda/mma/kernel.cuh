// SPDX-License-Identifier: Apache-2.0
//
// The product itself: sign tiles times planes on the int8 tensor cores through warp-level
// instructions, from sm_75 on.
//
// A block of WM x WK warps computes 16 MF WM weight rows by 8 NF rows of x; WK warps share those
// and take every WK-th group of 256 columns each, added in a fixed order at the end. Fragment
// blocks of x pass through a ring of shared-memory stages; the weights go straight to registers
// (each warp has rows of its own), sixteen bytes a lane holding its A fragments of a whole group.
// A group takes as many steps as there are planes, in one of two orders. Narrow blocks unpack
// weights often, so they take half the columns of both planes a step, with accumulators of their
// own; wide blocks have no registers for that and take all columns of one plane a step: the high
// digits first, whose sums are then shifted left by eight and go on as the low digits' sums.

#ifndef NQ_CUDA_MMA_KERNEL_CUH
#define NQ_CUDA_MMA_KERNEL_CUH

#include "cuda/mma/instructions.cuh"
#include "cuda/mma/types.cuh"
#include "cuda/ptx.cuh"

namespace nq_cuda {
namespace mma {

constexpr int kStages = 3;

// PER_SM blocks must find registers on a multiprocessor.
template <int MF_, int NF_, int WM_, int WK_, int PER_SM>
struct Shape {
  static constexpr int MF = MF_, NF = NF_, WM = WM_, WK = WK_;
  static constexpr bool kBoth = NF <= 4;  // both planes in one step
  static constexpr int kSets = kBoth ? 2 : 1;
  static constexpr int kThreads = 32 * WM * WK, kPerSm = PER_SM;
  static constexpr int kWeightRows = 16 * MF * WM;
  static constexpr int kRows = 8 * NF;
  static constexpr int kPlaneBytes = WK * NF * kBlockBytes;
  static constexpr int kStageBytes = kPlaneBytes + WK * kRows * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // Partial sums on their way out, [WK][kRows][kPitch], reuse the ring. The pitch spreads a warp's
  // stores over all banks.
  static constexpr int kPitch = kWeightRows + 4;
  static constexpr int kOutFloats = WK * kRows * kPitch;
  static_assert((kOutFloats + kThreads) * 4 <= kSharedBytes, "sums must fit the ring");
  static_assert(kThreads % 128 == 0 && NF % (kThreads / 128) == 0,
                "copies go by blocks of 128 threads");
};

// Bits as bytes of 0 and -128: a left shift and a mask, which run on two different pipes.
__device__ __forceinline__ void unpack(uint32_t (&a)[4], const uint4& w, int step) {
  a[0] = (w.x << (7 - step)) & 0x80808080u;
  a[1] = (w.y << (7 - step)) & 0x80808080u;
  a[2] = (w.z << (7 - step)) & 0x80808080u;
  a[3] = (w.w << (7 - step)) & 0x80808080u;
}

// k-steps 2 CHUNK to 2 CHUNK + 2 LENGTH of a group, for SETS planes one after the other.
template <typename S, int CHUNK, int LENGTH, int SETS, bool FIRST>
__device__ __forceinline__ void multiply_steps(int (&acc)[S::kSets][S::MF][S::NF][4],
                                               const uint4 (&w)[S::MF], const uint4* fragments) {
#pragma unroll
  for (int chunk = 0; chunk < LENGTH; ++chunk) {
#pragma unroll
    for (int set = 0; set < SETS; ++set) {
      uint4 b[S::NF];
#pragma unroll
      for (int n = 0; n < S::NF; ++n) {
        b[n] = fragments[n * (kBlockBytes / 16) + (set * LENGTH + chunk) * 32];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int m = 0; m < S::MF; ++m) {
          // The same for both planes: the compiler keeps it.
          uint32_t a[4];
          unpack(a, w[m], 2 * (CHUNK + chunk) + half);
#pragma unroll
          for (int n = 0; n < S::NF; ++n) {
            const uint32_t b0 = half ? b[n].z : b[n].x;
            const uint32_t b1 = half ? b[n].w : b[n].y;
            if (FIRST && chunk == 0 && half == 0) {
              multiply<true>(acc[set][m][n], a, b0, b1);
            } else {
              multiply<false>(acc[set][m][n], a, b0, b1);
            }
          }
        }
      }
    }
  }
}

// Where a thread's copies come from; a step's blocks are its slices of WK groups of NF row groups.
template <typename S, int PLANES>
struct Source {
  const ProductLayer& layer;
  const uint4* planes;   // of row group 0 (or 1 for the upper 128 of 256 threads), slice 0, step 0
  uint32_t group_pitch;  // in units of 16 bytes
  uint32_t row0;

  static constexpr int kPlane = kBlockBytes / 16, kGroup = PLANES * kPlane;

  __device__ __forceinline__ Source(const ProductLayer& of, uint32_t first_row)
      : layer(of), row0(first_row) {
    group_pitch = static_cast<uint32_t>(layer.k_tiles) * kGroup;
    const int inside = threadIdx.x % 128;
    // Half of each plane when both are taken at once.
    const int offset = S::kBoth && PLANES == 2 ? inside / 64 * kPlane + inside % 64 : inside;
    planes = reinterpret_cast<const uint4*>(layer.planes) + offset +
             static_cast<int64_t>(row0 / kRowGroup + threadIdx.x / 128) * group_pitch;
  }

  __device__ __forceinline__ void fetch(int round, int part, uint32_t stage,
                                        int64_t rows_padded) const {
    const int first = round * S::WK;
    const uint4* from =
        planes + static_cast<int64_t>(first) * kGroup + part * (S::kBoth ? kPlane / 2 : kPlane);
    const uint32_t to = stage + threadIdx.x * 16;
    constexpr int kAtOnce = S::kThreads / 128;
#pragma unroll
    for (int slice = 0; slice < S::WK; ++slice) {
      if (S::WK > 1 && first + slice >= layer.k_tiles) break;
      const uint4* row = from + slice * kGroup;
#pragma unroll
      for (int group = 0; group < S::NF; group += kAtOnce) {
        copy_async_16(to + (slice * S::NF + group) * kBlockBytes, row);
        row += kAtOnce * group_pitch;
      }
    }
    constexpr int kScaleThreads = S::kRows / 4;
    if (part == PLANES - 1 && threadIdx.x < S::WK * kScaleThreads) {
      const int k_tile = first + threadIdx.x / kScaleThreads;
      if (k_tile < layer.k_tiles) {
        copy_async_16(to + S::kPlaneBytes,
                      layer.scale + k_tile * rows_padded + row0 + threadIdx.x % kScaleThreads * 4);
      }
    }
  }
};

// Which outputs the block computes.
struct Place {
  int layer;
  int64_t row0, column0;
};

// Asked for again at the end: the index is read anew each time, so that nothing of this occupies
// registers in between.
template <typename S>
__device__ __forceinline__ Place place_of(const ProductParams& p) {
  const uint32_t block = block_index();
  const int tile = static_cast<int>(block / p.row_tiles);
  Place place = {0, static_cast<int64_t>(block % p.row_tiles) * S::kRows, 0};
  while (place.layer + 1 < p.count && tile >= p.layer[place.layer + 1].first_tile) ++place.layer;
  place.column0 = static_cast<int64_t>(tile - p.layer[place.layer].first_tile) * S::kWeightRows;
  return place;
}

// Sums from shared memory to the output: sum(x) - 2 sum_{b=1} x, scale, bias, residual; four
// neighbouring columns a thread.
template <typename S>
__device__ __forceinline__ void write_out(const ProductParams& p, const float* sums) {
  const Place place = place_of<S>(p);
  const ProductLayer& layer = p.layer[place.layer];
  const int64_t row0 = place.row0, column0 = place.column0;
  const float* row_sums = sums + S::kOutFloats;
  constexpr int kWide = S::kWeightRows / 4;
  for (int i = threadIdx.x; i < S::kRows * kWide; i += S::kThreads) {
    const int n = i / kWide, m = i % kWide * 4;
    const int64_t row = row0 + n, column = column0 + m, valid = layer.out_columns - column;
    if (row >= p.rows || valid <= 0) continue;
    float v[4] = {}, total = 0.0f, other[4];
#pragma unroll
    for (int k = 0; k < S::WK; ++k) {
      const float4 part =
          *reinterpret_cast<const float4*>(sums + (k * S::kRows + n) * S::kPitch + m);
      v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
    }
#pragma unroll
    for (int k = 0; k < S::kThreads / S::kRows; ++k) total += row_sums[k * S::kRows + n];
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = total + v[e] * (1.0f / 64.0f);  // bits were -128
    if (layer.out_scale != nullptr) {
      load_values<4>(layer.out_scale, p.scale_type, column, valid, other);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] *= other[e];
    }
    if (layer.bias != nullptr) {
      load_values<4>(layer.bias, p.scale_type, column, valid, other);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] += other[e];
    }
    const int64_t at = row * layer.out_stride + column;
    if (layer.residual != nullptr) {
      load_values<4>(layer.residual, p.out_type, at, valid, other);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] += other[e];
    }
    store_values(layer.out, p.out_type, at, valid, v);
  }
}

template <typename S>
__device__ __forceinline__ void shift_left(int (&acc)[S::MF][S::NF][4]) {
#pragma unroll
  for (int m = 0; m < S::MF; ++m) {
#pragma unroll
    for (int n = 0; n < S::NF; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[m][n][e] *= 256;
    }
  }
}

template <typename S>
__device__ __forceinline__ void add(int (&acc)[S::MF][S::NF][4],
                                    const int (&other)[S::MF][S::NF][4]) {
#pragma unroll
  for (int m = 0; m < S::MF; ++m) {
#pragma unroll
    for (int n = 0; n < S::NF; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[m][n][e] += other[m][n][e];
    }
  }
}

// The thread's share of sum(x) of one row: every group whose index is its own modulo the number of
// threads that share the row.
template <typename S>
__device__ __forceinline__ float sum_of_row(const ProductParams& p) {
  const Place place = place_of<S>(p);
  const ProductLayer& layer = p.layer[place.layer];
  const float* sums = layer.sum + place.row0 + threadIdx.x % S::kRows;
  float total = 0.0f;
#pragma unroll 4
  for (int k = threadIdx.x / S::kRows; k < layer.k_tiles; k += S::kThreads / S::kRows) {
    total += sums[k * p.rows_padded];
  }
  return total;
}

template <typename S, int PLANES>
__global__ void __launch_bounds__(S::kThreads, S::kPerSm)
    product(const __grid_constant__ ProductParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % S::WM, warp_k = warp / S::WM;
  const Place place = place_of<S>(p);
  const ProductLayer& layer = p.layer[place.layer];
  const int64_t row0 = place.row0, column0 = place.column0;
  const int k_tiles = layer.k_tiles;
  const int rounds = (k_tiles + S::WK - 1) / S::WK;

  const Source<S, PLANES> source(layer, static_cast<uint32_t>(row0));
  const uint32_t stages = shared_address(ring);
  // Rows of tiles past the matrix repeat its last one; their sums are never stored.
  static_assert(S::MF <= 2, "one distance between the row tiles of a warp");
  const int64_t last_tile = (layer.out_columns + 15) / 16 - 1;
  const int64_t wanted_tile = column0 / 16 + warp_m * S::MF;
  const uint4* weights =
      layer.tiles + (wanted_tile < last_tile ? wanted_tile : last_tile) * k_tiles * 32 + lane;
  const uint32_t pitch = wanted_tile < last_tile ? static_cast<uint32_t>(k_tiles) * 32 : 0;
  uint4 next[S::MF];
#pragma unroll
  for (int m = 0; m < S::MF; ++m) {
    next[m] = S::WK == 1 || warp_k < k_tiles ? __ldg(weights + m * pitch + warp_k * 32)
                                             : make_uint4(0, 0, 0, 0);
  }

  wait_for_predecessors();
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s / PLANES < rounds) {
      source.fetch(s / PLANES, s % PLANES, stages + s * S::kStageBytes, p.rows_padded);
    }
    copy_async_commit();
  }

  int acc[S::kSets][S::MF][S::NF][4];
  float sum[S::MF][S::NF][4] = {};
  // Early where the loop is short; late where registers are.
  float row_sum = S::kBoth ? sum_of_row<S>(p) : 0.0f;
  int slot = 0;
  for (int round = 0; round < rounds; ++round) {
    const int k_tile = round * S::WK + warp_k;
    uint4 w[S::MF];
#pragma unroll
    for (int m = 0; m < S::MF; ++m) {
      w[m] = next[m];
      if (k_tile + S::WK < k_tiles) {
        next[m] = __ldg(weights + m * pitch + (k_tile + S::WK) * 32);
      }
    }
#pragma unroll
    for (int part = 0; part < PLANES; ++part) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      const int free_slot = slot == 0 ? kStages - 1 : slot - 1;
      constexpr int kAhead = kStages - 1;
      const int coming = round + (part + kAhead) / PLANES;
      if (coming < rounds) {
        source.fetch(coming, (part + kAhead) % PLANES, stages + free_slot * S::kStageBytes,
                     p.rows_padded);
      }
      copy_async_commit();
      const unsigned char* stage = ring + slot * S::kStageBytes;
      slot = slot + 1 == kStages ? 0 : slot + 1;
      if (S::WK > 1 && k_tile >= k_tiles) continue;
      const uint4* fragments =
          reinterpret_cast<const uint4*>(stage + warp_k * S::NF * kBlockBytes) + lane;
      constexpr bool kHalves = S::kBoth && PLANES == 2;
      constexpr int kLength = kHalves ? 2 : 4, kPlanesAtOnce = kHalves ? 2 : 1;
      if (part == 0) {
        multiply_steps<S, 0, kLength, kPlanesAtOnce, true>(acc, w, fragments);
      } else {
        multiply_steps<S, kHalves ? 2 : 0, kLength, kPlanesAtOnce, false>(acc, w, fragments);
      }
      if (part < PLANES - 1) {
        if (!kHalves) shift_left<S>(acc[0]);
        continue;
      }
      if (kHalves) {
        shift_left<S>(acc[0]);
        add<S>(acc[0], acc[S::kSets - 1]);
      }
      const float* scales =
          reinterpret_cast<const float*>(stage + S::kPlaneBytes) + warp_k * S::kRows + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < S::NF; ++n) {
        const float2 scale = *reinterpret_cast<const float2*>(scales + n * 8);
#pragma unroll
        for (int m = 0; m < S::MF; ++m) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            sum[m][n][e] += (e & 1 ? scale.y : scale.x) * static_cast<float>(acc[0][m][n][e]);
          }
        }
      }
    }
  }

  copy_async_wait<0>();
  __syncthreads();
  float* out = reinterpret_cast<float*>(ring);
#pragma unroll
  for (int m = 0; m < S::MF; ++m) {
#pragma unroll
    for (int n = 0; n < S::NF; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = n * 8 + lane % 4 * 2 + (e & 1);
        const int column = (warp_m * S::MF + m) * 16 + lane / 4 + (e >> 1) * 8;
        out[(warp_k * S::kRows + row) * S::kPitch + column] = sum[m][n][e];
      }
    }
  }
  if (!S::kBoth) row_sum = sum_of_row<S>(p);
  out[S::kOutFloats + threadIdx.x] = row_sum;
  __syncthreads();
  write_out<S>(p, out);
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_MMA_KERNEL_CUH
