// SPDX-License-Identifier: Apache-2.0
//
// One stage of the warpgroup product: (signs, 256 rows a tile) x (activation panel, N rows a tile).
//
// Four consumer warpgroups own 64 rows of signs each. Signs become +-1 in registers, as operand A
// of wgmma; the panel (panels.h) is operand B in shared memory. One producer warp streams tiles of
// signs, which are constants and may run ahead of the stream, another one the panel. When there
// are too few tiles for the GPU, the blocks of a cluster share one: each sums over a part of the
// columns, and each adds up and finishes a part of the result, in a fixed order.
//
// Stage 1 (FIRST) writes the next panel, stage 2 writes y. In stage 1 a warp takes rows s and
// s + 8 of eight tiles instead of one tile's 16: they are neighbours in the panel's order.

#ifndef NQ_CUDA_WGMMA_KERNEL_CUH
#define NQ_CUDA_WGMMA_KERNEL_CUH

#include "cuda/ptx.cuh"
#include "cuda/wgmma/finish.cuh"
#include "cuda/wgmma/sums.cuh"

namespace nq_cuda {

template <int N, bool BYTES>
__device__ __forceinline__ void produce_signs(const WgmmaStage& stage, uint32_t base, uint32_t full,
                                              uint32_t empty, int turn, int rank, int ranks) {
  using Shape = WgmmaShape<N, BYTES>;
  // Plain asynchronous copies: bulk copies of 512 bytes take a warp longer than the multiplies do.
  constexpr int kTiles = 16 / kSignWarps;
  const int lane = threadIdx.x % 32;
  Ring<Shape::kSignStages> ring;
  for (int index = blockIdx.x / ranks; index < stage.tiles; index += gridDim.x / ranks) {
    const WgmmaTile tile = wgmma_tile(stage, index, rank, ranks);
    const WgmmaPart& part = stage.parts[tile.part];
    const int first = tile.m * 16 + turn * kTiles;
    const int present = min(kTiles, (part.rows + 15) / 16 - first);
    int pitch = part.steps * 512;
    const char* from = static_cast<const char*>(part.signs) + static_cast<int64_t>(first) * pitch +
                       tile.begin * 512 + lane * 16;
#pragma unroll 1
    for (int step = tile.begin; step < tile.end; ++step) {
      barrier_wait(empty + ring.index * 8, ring.parity ^ 1u);
      uint32_t to =
          base + Shape::kSignsAt + ring.index * kSignBytes + turn * kTiles * 512 + lane * 16;
      const char* here = from;
      asm volatile("" : "+r"(pitch));  // or eight addresses are kept, and spilled
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (i < present) copy_async_16(to, here);
        to += 512;
        here += pitch;
      }
      async_copies_arrive(full + ring.index * 8);
      from += 512;
      ring.next();
    }
  }
  async_copies_wait();
}

template <int N, bool BYTES>
__device__ __forceinline__ void produce_panel(const WgmmaStage& stage, uint32_t base, uint32_t full,
                                              uint32_t empty, int rank, int ranks) {
  using Shape = WgmmaShape<N, BYTES>;
  Ring<Shape::kPanelStages> ring;
  for (int index = blockIdx.x / ranks; index < stage.tiles; index += gridDim.x / ranks) {
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
  release_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kPanelStages; ++i) {
      barrier_init(full_panel + 8 * i, 1);
      barrier_init(empty_panel + 8 * i, kGroups * 4);
    }
    for (int i = 0; i < Shape::kSignStages; ++i) {
      barrier_init(full_signs + 8 * i, 32 * kSignWarps);
      barrier_init(empty_signs + 8 * i, kGroups * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warp >= kGroups * 4) {
    give_registers<kProducerRegisters>();
    if (warp < kGroups * 4 + kSignWarps) {
      produce_signs<N, BYTES>(stage, base, full_signs, empty_signs, warp - kGroups * 4, rank,
                              ranks);
    } else if (warp == kGroups * 4 + kSignWarps && lane == 0) {
      wait_for_predecessors();
      global_to_async_fence();
      produce_panel<N, BYTES>(stage, base, full_panel, empty_panel, rank, ranks);
    }
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<N, FIRST, BYTES> consumer{stage,       base, full_panel, empty_panel, full_signs,
                                       empty_signs, warp, lane,       {},          {}};
    const Finisher<N, FIRST, BYTES> finisher{stage, base, warp, lane};
    typename Sum<BYTES>::Type sums[N / 2];
    for (int index = blockIdx.x / ranks; index < stage.tiles; index += gridDim.x / ranks) {
      const WgmmaTile tile = wgmma_tile(stage, index, rank, ranks);
      if constexpr (Shape::kWarps) {
        consumer.accumulate_in_warps(tile, sums);
      } else {
        consumer.accumulate(tile, sums);
      }
      wait_for_predecessors();
      const auto terms = finisher.load_terms(tile);
      if (ranks > 1) {
        consumer.share(sums);
        cluster_barrier();
        if (consumer.owns(0, rank, ranks)) consumer.template gather<0>(sums, ranks);
        if (consumer.owns(1, rank, ranks)) consumer.template gather<1>(sums, ranks);
      }
      if (consumer.owns(0, rank, ranks)) finisher.template finish<0>(tile, terms, sums);
      if (consumer.owns(1, rank, ranks)) finisher.template finish<1>(tile, terms, sums);
      if (ranks > 1) cluster_barrier();  // others read this block's sums
    }
  }
}

}  // namespace nq_cuda

#endif  // NQ_CUDA_WGMMA_KERNEL_CUH
