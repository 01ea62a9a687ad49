// SPDX-License-Identifier: Apache-2.0
//
// The product itself: sign tiles times planes on the int8 tensor cores through warp-level
// instructions, from sm_75 on.
//
// A block of WM x WK warps computes 16 MF WM weight rows by 8 NF rows of x; WK warps share those
// and take every WK-th group of 256 columns each, added in a fixed order at the end. Fragment
// blocks of x pass through a ring of shared-memory stages, one plane of WK groups at a time; the
// weights go straight to registers (each warp has rows of its own), sixteen bytes a lane holding
// its A fragments of a whole group. High digits are multiplied first and their sums shifted left by
// eight, so both planes share one accumulator.

#ifndef NQ_CUDA_GEMM_MMA_KERNEL_CUH
#define NQ_CUDA_GEMM_MMA_KERNEL_CUH

#include "gemm_mma_types.cuh"

namespace nq_cuda {
namespace mma {

constexpr int kStages = 3;

template <int MF_, int NF_, int WM_, int WK_>
struct Shape {
  static constexpr int MF = MF_, NF = NF_, WM = WM_, WK = WK_;
  static constexpr int kThreads = 32 * WM * WK;
  static constexpr int kWeightRows = 16 * MF * WM;
  static constexpr int kRows = 8 * NF;
  static constexpr int kPlaneBytes = WK * NF * kBlockBytes;
  static constexpr int kStageBytes = kPlaneBytes + WK * kRows * 4;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // Partial sums on their way out, [WK][kRows][kPitch], reuse the ring. The pitch spreads a warp's
  // stores over all banks.
  static constexpr int kPitch = kWeightRows + 4;
  static constexpr int kOutFloats = WK * kRows * kPitch;
  static_assert((kOutFloats + WK * kRows) * 4 <= kSharedBytes, "sums must fit the ring");
  static_assert(kThreads % 128 == 0, "copies go by blocks of 128 threads");
};

__device__ __forceinline__ void copy16(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  *static_cast<uint4*>(to) = __ldg(static_cast<const uint4*>(from));
#endif
}

__device__ __forceinline__ void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int PENDING>
__device__ __forceinline__ void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// acc += A B, 16 x 8 x 32. Four sm_75 instructions take the same fragments.
__device__ __forceinline__ void multiply(int (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(acc[2 * half]), "+r"(acc[2 * half + 1])
                 : "r"(a[half]), "r"(b0));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(acc[2 * half]), "+r"(acc[2 * half + 1])
                 : "r"(a[2 + half]), "r"(b1));
  }
#endif
}

// One plane of one group: eight k-steps.
template <typename S>
__device__ __forceinline__ void multiply_plane(int (&acc)[S::MF][S::NF][4], const uint4 (&w)[S::MF],
                                               const uint4* fragments) {
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) {
    uint4 b[S::NF];
#pragma unroll
    for (int n = 0; n < S::NF; ++n) b[n] = fragments[n * (kBlockBytes / 16) + chunk * 32];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int step = 2 * chunk + half;
#pragma unroll
      for (int m = 0; m < S::MF; ++m) {
        const uint32_t a[4] = {(w[m].x >> step) & 0x01010101u, (w[m].y >> step) & 0x01010101u,
                               (w[m].z >> step) & 0x01010101u, (w[m].w >> step) & 0x01010101u};
#pragma unroll
        for (int n = 0; n < S::NF; ++n) {
          multiply(acc[m][n], a, half ? b[n].z : b[n].x, half ? b[n].w : b[n].y);
        }
      }
    }
  }
}

// Brings one plane of WK groups, and with the last plane their scales, into a stage.
template <typename S, int PLANES>
__device__ __forceinline__ void fetch(const ProductLayer& layer, int64_t rows_padded, int64_t row0,
                                      int step, unsigned char* stage) {
  const int first = step / PLANES * S::WK, plane = step % PLANES;
  const int8_t* from = layer.planes + (threadIdx.x % 128) * 16;
#pragma unroll
  for (int i = 0; i < S::WK * S::NF * 128 / S::kThreads; ++i) {
    const int block = i * (S::kThreads / 128) + threadIdx.x / 128;
    const int k_tile = first + block / S::NF;
    const int64_t group = row0 / kRowGroup + block % S::NF;
    if (k_tile < layer.k_tiles) {
      copy16(stage + block * kBlockBytes + (threadIdx.x % 128) * 16,
             from + ((group * layer.k_tiles + k_tile) * PLANES + plane) * kBlockBytes);
    }
  }
  if (plane == PLANES - 1 && threadIdx.x < S::WK * S::kRows / 4) {
    const int k_tile = first + threadIdx.x / (S::kRows / 4);
    if (k_tile < layer.k_tiles) {
      copy16(stage + S::kPlaneBytes + threadIdx.x * 16,
             layer.scale + k_tile * rows_padded + row0 + threadIdx.x % (S::kRows / 4) * 4);
    }
  }
}

// Sums from shared memory to the output: sum(x) - 2 sum, scale, bias, residual; four neighbouring
// columns a thread.
template <typename S>
__device__ __forceinline__ void write_out(const ProductParams& p, const ProductLayer& layer,
                                          const float* sums, int64_t row0, int64_t column0) {
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
      total += row_sums[k * S::kRows + n];
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] = total - 2.0f * v[e];
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

template <typename S, int PLANES>
__global__ void __launch_bounds__(S::kThreads, S::kThreads > 128 ? 1 : 2)
    product(const __grid_constant__ ProductParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp % S::WM, warp_k = warp / S::WM;
  const int tile = static_cast<int>(blockIdx.x / p.row_tiles);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x % p.row_tiles) * S::kRows;
  int which = 0;
  while (which + 1 < p.count && tile >= p.layer[which + 1].first_tile) ++which;
  const ProductLayer& layer = p.layer[which];
  const int64_t column0 = static_cast<int64_t>(tile - layer.first_tile) * S::kWeightRows;
  const int k_tiles = layer.k_tiles;
  const int rounds = (k_tiles + S::WK - 1) / S::WK, steps = rounds * PLANES;

#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) fetch<S, PLANES>(layer, p.rows_padded, row0, s, ring + s * S::kStageBytes);
    copies_commit();
  }

  // Rows of tiles past the matrix repeat its last one; their sums are never stored.
  const uint4* weights[S::MF];
  uint4 next[S::MF];
  const int64_t last_tile = (layer.out_columns + 15) / 16 - 1;
#pragma unroll
  for (int m = 0; m < S::MF; ++m) {
    const int64_t row_tile = column0 / 16 + warp_m * S::MF + m;
    weights[m] = layer.tiles + (row_tile < last_tile ? row_tile : last_tile) * k_tiles * 32 + lane;
    next[m] = warp_k < k_tiles ? __ldg(weights[m] + warp_k * 32) : make_uint4(0, 0, 0, 0);
  }

  int acc[S::MF][S::NF][4] = {};
  float sum[S::MF][S::NF][4] = {};
  float row_sum = 0.0f;
  const bool adds_rows = threadIdx.x < S::WK * S::kRows;
  const float* row_sums = layer.sum + row0 + threadIdx.x % S::kRows;
  int slot = 0;
  for (int round = 0; round < rounds; ++round) {
    const int k_tile = round * S::WK + warp_k;
    uint4 w[S::MF];
#pragma unroll
    for (int m = 0; m < S::MF; ++m) {
      w[m] = next[m];
      if (k_tile + S::WK < k_tiles) next[m] = __ldg(weights[m] + (k_tile + S::WK) * 32);
    }
    const int row_tile = round * S::WK + static_cast<int>(threadIdx.x) / S::kRows;
    const float group_sum =
        adds_rows && row_tile < k_tiles ? __ldg(row_sums + row_tile * p.rows_padded) : 0.0f;
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      copies_wait<kStages - 2>();
      __syncthreads();
      const int ahead = round * PLANES + plane + kStages - 1;
      const int free_slot = slot == 0 ? kStages - 1 : slot - 1;
      if (ahead < steps) {
        fetch<S, PLANES>(layer, p.rows_padded, row0, ahead, ring + free_slot * S::kStageBytes);
      }
      copies_commit();
      const unsigned char* stage = ring + slot * S::kStageBytes;
      slot = slot + 1 == kStages ? 0 : slot + 1;
      if (k_tile >= k_tiles) continue;
      multiply_plane<S>(
          acc, w, reinterpret_cast<const uint4*>(stage + warp_k * S::NF * kBlockBytes) + lane);
      if (plane < PLANES - 1) {
#pragma unroll
        for (int m = 0; m < S::MF; ++m) {
#pragma unroll
          for (int n = 0; n < S::NF; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[m][n][e] <<= 8;
          }
        }
        continue;
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
            sum[m][n][e] += (e & 1 ? scale.y : scale.x) * static_cast<float>(acc[m][n][e]);
            acc[m][n][e] = 0;
          }
        }
      }
    }
    row_sum += group_sum;
  }

  copies_wait<0>();
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
  if (adds_rows) out[S::kOutFloats + threadIdx.x] = row_sum;
  __syncthreads();
  write_out<S>(p, layer, out, row0, column0);
}

}  // namespace mma
}  // namespace nq_cuda

#endif  // NQ_CUDA_GEMM_MMA_KERNEL_CUH
